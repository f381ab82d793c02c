from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # several ranks on few cores
TOP = Path(__file__).resolve().parent.parent
for folder in (TOP, TOP / "tests"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

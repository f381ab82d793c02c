from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # several ranks on few cores
TOP = Path(__file__).resolve().parent.parent
for folder in (TOP, TOP / "tests"):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

INTERFACES = {name: os.environ.get(name) for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")}


@pytest.fixture(autouse=True)
def no_choice_of_network_stays() -> Iterator[None]:
    """A process that has joined a group in itself keeps the interface, which processes on emulated hosts lack."""
    yield
    for name, value in INTERFACES.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value

"""What the parts of a results file are made of: checked numbers, and sections that keep keys they do not know."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0)]
Duration = Annotated[float, Field(gt=0, le=1e6)]  # s, of something that was measured
Bandwidth = Annotated[float, Field(gt=0, le=1e15)]  # bytes/s


class Section(BaseModel):
    """Unknown keys are kept, so that a newer file still reads; NaN and infinities are refused."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False, protected_namespaces=())

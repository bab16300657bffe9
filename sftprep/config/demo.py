"""Options of `sftprep demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from sftprep.config.places import LocalPath, readable


class DemoConfig(BaseModel):
    """Where the tour writes, and how long it trains. Each field's description is the help text of its option."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    out: Annotated[LocalPath, AfterValidator(readable)] = Field(
        default=Path("demo"), description="Where everything that the tour makes is written."
    )
    steps: int = Field(default=120, ge=1, description="Optimizer steps of the training.")
    overwrite: bool = Field(default=False, description="Replace what an earlier tour wrote in the same place.")

"""From a command's options to its frozen config: an option says what its field says, and a wrong one is named."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import typer
from pydantic import BaseModel, ValidationError

from sftprep.errors import UsageError

Config = TypeVar("Config", bound=BaseModel)


def option_of(config: type[BaseModel], field: str, *names: str, **settings: Any) -> Any:
    """The option of a field, by the field's name unless `names` are given."""
    names = names or (f"--{field.replace('_', '-')}",)
    return typer.Option(*names, help=config.model_fields[field].description, **settings)


def read_config(
    kind: type[Config], options: dict[str, Any], *, command: str, names: Mapping[str, str] | None = None
) -> Config:
    """UsageError `bad-option` where options are wrong one by one or together.

    `names` are of options that are called otherwise than their fields.
    """
    try:
        return kind(**options)
    except ValidationError as error:
        first = error.errors()[0]
        field = str(first["loc"][0]) if first["loc"] else ""
        option = (names or {}).get(field, f"--{field.replace('_', '-')}")
        name = f"{option}: " if field else ""
        what = first["msg"].removeprefix("Value error, ")
        raise UsageError(f"{name}{what}", code="bad-option", hint=f"see sftprep {command} --help") from error

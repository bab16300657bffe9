"""From a command's options to its frozen config: an option says what its field says, and a wrong one is named."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, TypeVar

import typer
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from sftprep.errors import UsageError

_ARGUMENTS: Final = {"files": "FILE", "directory": "DIR_OR_URL", "data": "DIR_OR_URL"}
"""What is named by its position."""

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
        option = {**_ARGUMENTS, **(names or {})}.get(field, f"--{field.replace('_', '-')}")
        name = f"{option}: " if field else ""
        raise UsageError(f"{name}{_said(first)}", code="bad-option", hint=f"see sftprep {command} --help") from error


def _said(error: ErrorDetails) -> str:
    """What is wrong with a value, and the value where the words do not hold it."""
    said = error["msg"].removeprefix("Value error, ")
    wanted = said.removeprefix("Input should be ")
    return said if wanted == said else f"must be {wanted}, is {error['input']!r:.80}"

"""The thresholds of quality from a TOML file: `loop_share = 0.3` and so on, one a line."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from sftprep.config.quality import QualityConfig
from sftprep.errors import UsageError

_OF_THE_COMMAND: Final = frozenset({"files", "format", "against", "json_file", "source_key"})


def read_thresholds(path: Path) -> dict[str, Any]:
    """The fields of QualityConfig that a file sets, each with a value that it may have.

    Raises:
        UsageError: `missing-file`; `bad-option` where it is no TOML, names another field, or a value is out of range.
    """
    known = sorted(QualityConfig.model_fields.keys() - _OF_THE_COMMAND)
    hint = f"it may set: {', '.join(known)}"
    try:
        given = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        what = f"cannot be opened: {error.strerror}"
        raise UsageError(what, code="missing-file", place=str(path), hint="--quality-config names a file") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"is not TOML: {error}", code="bad-option", place=str(path), hint=hint) from error
    unknown = sorted(given.keys() - set(known))
    if unknown:
        raise UsageError(f"no threshold is called {unknown[0]!r}", code="bad-option", place=str(path), hint=hint)
    try:
        QualityConfig(files=(path,), **given)
    except ValidationError as error:
        first = error.errors()[0]
        what = f"{first['loc'][0]}: {first['msg']}"
        raise UsageError(what, code="bad-option", place=str(path), hint="see schemas/ for the ranges") from error
    return given

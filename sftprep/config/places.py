"""Paths in options: a file of this machine, or the URL of one in an object store."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Final, cast

from pydantic import PlainSerializer, PlainValidator

from sftprep.errors import UsageError

CACHE_DIR: Final = Path("~/.cache/sftprep")
"""Where shards of object stores are copied, unless told otherwise; commands share it."""

CACHE_GB: Final = 100.0

REMOTE_HINT = "pip install 'sftprep[remote]' for s3://; another scheme needs the package that fsspec names for it"


_ESCAPED: Final = re.compile(r"\\udc([89a-f][0-9a-f])")


def place_of(text: str | Path) -> Path:
    """The path, or where the text has a scheme (`s3://bucket/chats.jsonl`) what stands for the URL as a path would.

    Raises:
        UsageError: `missing-extra`, `no-such-scheme`.
    """
    if "://" not in str(text):
        return Path(text)
    try:
        # An extra of its own, and 0.1 s that runs on files do without.
        from upath import UPath

        return cast(Path, UPath(text))
    except ImportError as error:
        what = f"reading or writing there needs a package that is not installed: {error}"
        raise UsageError(what, code="missing-extra", place=str(text), hint=REMOTE_HINT) from error
    except ValueError as error:
        hint = "s3://bucket/key, hf://datasets/owner/name/file, or another URL that fsspec knows"
        raise UsageError("nothing reads such URLs", code="no-such-scheme", place=str(text), hint=hint) from error


def shown(place: Path) -> str:
    """What shards and reports of them call a file: its path, with escapes for bytes that are not UTF-8."""
    return str(place).encode("utf-8", "backslashreplace").decode("utf-8")


def recorded(text: str) -> Path:
    """The file that was `shown` so: its name is this text, or has the bytes that the text's escapes stand for."""
    place = place_of(text)
    if is_remote(text) or place.exists():
        return place
    return Path(_ESCAPED.sub(lambda escaped: chr(0xDC00 + int(escaped[1], 16)), text))


def is_remote(place: str | Path) -> bool:
    """Whether it is a URL."""
    return "://" in str(place)


Place = Annotated[Path, PlainValidator(place_of, json_schema_input_type=Path), PlainSerializer(shown)]
"""A path that may be a URL. What it is built from is text, never a Path: that would make one slash of the two."""

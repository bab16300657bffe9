"""Paths in options: a file of this machine, or the URL of one in an object store."""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final, cast

from pydantic import AfterValidator, BeforeValidator, PlainSerializer, PlainValidator

from sftprep.errors import OutputError, UsageError

CACHE_DIR: Final = Path("~/.cache/sftprep")
"""Where shards of object stores are copied, unless told otherwise; commands share it."""

CACHE_GB: Final = 100.0

_EXTRAS: Final = {"gs": "gcs", "gcs": "gcs", "abfs": "azure", "abfss": "azure", "az": "azure", "adl": "azure"}
"""Extras of schemes that need more than the extra `remote`."""

_ESCAPED: Final = re.compile(r"\\udc([89a-f][0-9a-f])")
# A URL that went through a path has one slash where it had two; a drive of Windows has one letter.
_WAS_URL: Final = re.compile(r"[a-z][a-z0-9+.-]+:/")


def place_of(text: str | Path) -> Path:
    """The path, or where the text has a scheme (`s3://bucket/chats.jsonl`) what stands for the URL as a path would.

    Raises:
        UsageError: `missing-extra`, `no-such-scheme`. ValueError: a URL that went through a path.
    """
    if "://" not in str(text):
        if _WAS_URL.match(str(text)):
            raise ValueError(f"{text} is the rest of a URL: give it as text, not as a path")
        return Path(text)
    scheme = str(text).partition("://")[0]
    try:
        # An extra of its own, and 0.1 s that runs on files do without.
        from fsspec import get_filesystem_class
        from upath import UPath

        found = UPath(text)
        get_filesystem_class(scheme)  # else it is met where the first byte is asked for
    except ImportError as error:
        what = f"reading or writing there needs a package that is not installed: {error}"
        raise UsageError(what, code="missing-extra", place=str(text), hint=_to_install(scheme)) from error
    except ValueError as error:
        hint = "s3://bucket/key, hf://datasets/owner/name/file, or another URL that fsspec knows"
        raise UsageError("nothing reads such URLs", code="no-such-scheme", place=str(text), hint=hint) from error
    return cast(Path, found)


def _to_install(scheme: str) -> str:
    extra = _EXTRAS.get(scheme, "remote")
    if extra != "remote" or scheme in {"s3", "s3a", "hf"}:
        return f"pip install 'sftprep[{extra}]'"
    return "pip install 'sftprep[remote]', and the package that fsspec names for the scheme"


def shown(place: str | Path) -> str:
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


def on_this_machine(path: Path) -> Path:
    """The path. ValueError where it is a URL, or what is left of one."""
    if is_remote(path) or _WAS_URL.match(path.as_posix()):
        raise ValueError(f"{path} is a URL, and must be a path of this machine: name one, and copy from or to there")
    return path


def file_of(text: str | Path) -> Path:
    """The place of a file, as `place_of`. ValueError where the text ends as a directory's does, or where it is one's.

    A path and a URL lose the slash that they end in, and would name another place.
    """
    if str(text).endswith("/"):
        raise ValueError(f"{text} names a directory: name a file in it")
    return place_of(text)


def input_of(text: str | Path) -> Path:
    """The place of an input, as `place_of`. ValueError where a URL ends as a folder's does: a store has no folders."""
    if is_remote(text) and str(text).endswith("/"):
        raise ValueError(f"{text} names a folder: name its files, as in {text}*.jsonl")
    return place_of(text)


def unwritten(place: str | Path, error: OSError) -> OutputError:
    """What a failure to write at a place is called: `disk-full`, else `output-not-writable`."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return OutputError(
        f"cannot write: {error.strerror or error}",
        code="disk-full" if full else "output-not-writable",
        place=str(place),
        hint="free some space or name another place" if full else "name a place that can be written",
    )


def refuse_inside(outputs: Mapping[str, Path | None], inputs: Mapping[str, Path | None]) -> None:
    """OutputError `output-in-use`, by the options, where an output lies inside a directory that is read."""
    for option, output in outputs.items():
        for name, directory in inputs.items():
            if output is not None and directory is not None and _is_inside(output, directory):
                raise OutputError(
                    f"{option} lies inside what {name} names, which is read and must stay as it is",
                    code="output-in-use",
                    place=str(output),
                    hint="name a place outside of it",
                )


def _is_inside(output: Path, directory: Path) -> bool:
    if is_remote(output) or is_remote(directory):
        return f"{output}/".startswith(f"{str(directory).rstrip('/')}/")
    return output.expanduser().resolve().is_relative_to(directory.expanduser().resolve())


def _model_name(name: str) -> str:
    if is_remote(name):
        what = f"{name} is a URL, and a model is a directory on this machine or a hub id: copy it here"
        raise ValueError(f"{what}, or name it owner/name" if name.startswith("hf://") else what)
    return name


def readable(name: str | Path) -> str | Path:
    """A path that every library opens. ValueError where it is not UTF-8: tokenizers opens no such path."""
    if shown(name) != str(name):
        raise ValueError(
            f"{shown(name)} is not UTF-8, and not every library opens such a path: name another, or a link"
        )
    return name


Place = Annotated[Path, PlainValidator(place_of, json_schema_input_type=Path), PlainSerializer(shown)]
"""A path that may be a URL. What it is built from is text, never a Path: that would make one slash of the two."""

FilePlace = Annotated[Path, PlainValidator(file_of, json_schema_input_type=Path), PlainSerializer(shown)]
"""A `Place` that is written as one file."""

InputPlace = Annotated[Path, PlainValidator(input_of, json_schema_input_type=Path), PlainSerializer(shown)]
"""A `Place` that rows are read from: a file, a pattern, or a directory of this machine."""

LocalPath = Annotated[Path, AfterValidator(on_this_machine)]
"""A path of this machine; a URL is refused by name."""

ModelName = Annotated[str, BeforeValidator(readable), AfterValidator(_model_name)]
"""A model's directory on this machine, or its hub id; a URL is refused by name."""

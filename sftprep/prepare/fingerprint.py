"""The fingerprint of a shard set: one hash over everything that decides its bytes."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Final

from sftprep import __version__
from sftprep.config.pack import PackConfig
from sftprep.data import Json
from sftprep.engines.model import ModelFiles
from sftprep.shards.schema import FORMAT_VERSION

if TYPE_CHECKING:
    from sftprep.prepare.inputs import InputFile

NOT_IN_MANIFEST: Final = frozenset(
    {
        "out",
        "work_dir",
        "overwrite",
        "append",
        "workers",
        "runner",
        "ray_address",
        "tokenizer_engine",
        "plans",
        "rehash",
    }
)
"""Options that the shards know nothing of: the same set has the same manifest wherever and however it was made."""

NOT_IN_BYTES: Final = NOT_IN_MANIFEST | {"files", "sources", "model", "max_drop"}
"""Options that decide where, how fast or whether, but no byte; inputs and model count by their contents."""

_LIBRARIES: Final = ("jinja2", "numpy", "pyarrow", "tokenizers")


def versions() -> dict[str, str]:
    """What decides bytes beside the inputs: template rendering, tokens, the order drawn, the Parquet writer."""
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    return {"sftprep": __version__, "python": python, **_installed()}


@cache
def _installed() -> Mapping[str, str]:
    """Looking one up reads and parses a file; a run asks four times."""
    return {name: version(name) for name in _LIBRARIES}


def fingerprint(files: Sequence[InputFile], *, model: ModelFiles, config: PackConfig) -> str:
    """Hex sha256. The same for any path, worker count and clock; another for any change of what is packed, or how."""
    ingredients = {
        "format_version": FORMAT_VERSION,
        "versions": versions(),
        "sources": [_source(file) for file in files],
        "model": {
            "tokenizer": model.tokenizer_sha256,
            "template": model.template_sha256,
            "special_tokens": dict(model.special_tokens),
            "control_tokens": list(model.control_tokens),
            "stop_ids": list(model.stop_ids),
            "pad_id": model.pad_id,
        },
        "config": config.model_dump(mode="json", exclude=set(NOT_IN_BYTES)),
    }
    # Keys are not sorted: a template may print an object of --template-kwargs, in its own order.
    canonical = json.dumps(ingredients, ensure_ascii=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()


def _source(file: InputFile) -> dict[str, Json]:
    """A name decides bytes only where it draws the rows of a fraction."""
    spec = file.spec
    drawn = {} if spec.epochs.is_integer() else {"name": spec.name}
    known = {"identity": file.identity, "num_bytes": file.num_bytes} if file.identity else {"sha256": file.sha256}
    return {**known, "epochs": spec.epochs, **drawn}

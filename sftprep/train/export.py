"""A trained model as a Hugging Face directory: its weights, and the packed set's text files byte for byte."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError
from transformers import GenerationConfig, PreTrainedModel

from sftprep.errors import OutputError, ShardError
from sftprep.shards.read import ShardSet
from sftprep.train import lora

_GENERATION_CONFIG: Final = "generation_config.json"
_NOT_COPIED: Final = frozenset({_GENERATION_CONFIG, "config.json"})
"""Of the packed set's `model/`: these two are the trained model's own."""


def save_model(
    model: PreTrainedModel, directory: Path, *, shards: ShardSet, weights: dict[str, Any] | None = None
) -> None:
    """Weights and configuration of the model, text files of the packed set byte for byte, stop ids as trained.

    `weights` stand for the model's own where it is split among processes.
    """
    stop_ids = list(shards.manifest.model.stop_ids)
    tokens = {
        "eos_token_id": stop_ids[0] if len(stop_ids) == 1 else stop_ids,
        "pad_token_id": shards.manifest.model.pad_id,
    }
    for name, value in tokens.items():
        setattr(model.config, name, value)
    # The model's own generation settings may be ones that transformers refuses to save; the file is written below.
    model.generation_config = GenerationConfig(**tokens)
    model.save_pretrained(directory, state_dict=lora.merged_state(model, weights))
    source = shards.directory / "model"
    for path in sorted(path for path in source.rglob("*") if path.is_file() and path.name not in _NOT_COPIED):
        target = directory / path.relative_to(source)
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, target)
    settings = _generation_settings(shards) | tokens
    (directory / _GENERATION_CONFIG).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


@contextmanager
def writing(place: Path) -> Iterator[None]:
    """A failure of the file system inside is an OutputError: `disk-full`, `output-not-writable`."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
        raise OutputError(
            f"cannot write: {error}",
            code="disk-full" if full else "output-not-writable",
            place=str(place),
            hint="free some space or name another place" if full else "name a directory that can be written",
        ) from error


def _generation_settings(shards: ShardSet) -> dict[str, Any]:
    path = shards.directory / "model" / _GENERATION_CONFIG
    if not path.is_file():
        return {}
    settings = json.loads(path.read_bytes())
    if not isinstance(settings, dict):
        raise ShardError("not a JSON object", code="damaged-model-file", place=str(path), hint="pack again")
    return settings

"""What a run proved before its first step, so that going on with it need not prove all of it at full length again.

A proof is kept as a hash of everything that it rests on. Where one part differs, nothing was proven.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import torch
from transformers import PreTrainedModel

from sftprep.engines.load import read_text_files
from sftprep.shards.manifest import Manifest
from sftprep.train.export import writing

_FILE: Final = "proof.json"
_PACKAGES: Final = ("sftprep", "torch", "transformers", "tokenizers", "accelerate")
_DECIDES_NOTHING: Final = ("_name_or_path", "architectures", "dtype", "transformers_version", "use_cache")
_OF_TOKENS: Final = ("bos_token_id", "eos_token_id", "pad_token_id")
"""Both of a model's configuration: what a checkpoint of it says otherwise, and no attention asks for."""


@dataclass(frozen=True, slots=True)
class Proof:
    """What the processes before this one proved, and what this one did: hashes by what was proven."""

    before: dict[str, str] = field(default_factory=dict)
    now: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, directory: Path) -> Proof:
        """What is noted in a run's directory; nothing where that cannot be read."""
        try:
            found = json.loads((directory / _FILE).read_bytes())
        except (OSError, ValueError):
            found = {}
        return cls(before=found if isinstance(found, dict) else {})

    def knows(self, what: str, ground: str) -> bool:
        """Whether this was proven before, resting on the same."""
        return self.before.get(what) == ground

    def write(self, directory: Path) -> None:
        """Note what this process proved, for the next. OutputError `output-not-writable`."""
        with writing(directory):
            (directory / _FILE).write_text(json.dumps(self.now), encoding="utf-8")


def forget(directory: Path) -> None:
    """A finished run has nothing to go on with."""
    (directory / _FILE).unlink(missing_ok=True)


def ground_of_fit(directory: Path, manifest: Manifest) -> str:
    """What it rests on that a model's files fit a set: the bytes of both."""
    files = {name: hashlib.sha256(content).hexdigest() for name, content in read_text_files(directory).items()}
    return _hashed({"files": files, "set": manifest.model.model_dump(mode="json")})


def ground_of_isolation(model: PreTrainedModel, *, device: torch.device, options: dict[str, Any]) -> str:
    """What it rests on that packed documents stay apart in a model: its form, the device, and how it is trained."""
    form = {key: value for key, value in model.config.to_dict().items() if key not in _DECIDES_NOTHING + _OF_TOKENS}
    modules = sorted({f"{type(module).__module__}.{type(module).__qualname__}" for module in model.modules()})
    return _hashed({"form": form, "modules": modules, "device": _device(device), **options})


def _device(device: torch.device) -> list[str]:
    if device.type == "cuda":
        return [torch.cuda.get_device_name(device), str(torch.cuda.get_device_capability(device))]
    return [device.type, torch.backends.cpu.get_cpu_capability()]


def _hashed(ground: dict[str, Any]) -> str:
    versions = {package: version(package) for package in _PACKAGES}
    text = json.dumps({"versions": versions, **ground}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

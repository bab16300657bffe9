"""Opens the model to be trained, and refuses one that the packed set was not made for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, GgufConfig, PreTrainedModel

from sftprep.config.train import TrainConfig
from sftprep.engines.load import build_model, read_text_files
from sftprep.engines.model import ModelFiles
from sftprep.errors import ModelFilesError, ShardError
from sftprep.shards.manifest import Manifest
from sftprep.train.device import is_out_of_memory

_HUB_FILES: Final = ("*.json", "*.jinja", "*.safetensors")
WEIGHT_FILES: Final = ("*.safetensors", "pytorch_model*.bin")


@dataclass(frozen=True, slots=True)
class ModelPlace:
    """A model on this machine: its directory, and the GGUF file in it where the weights are one."""

    name: str
    directory: Path
    gguf: str | None


def locate(name: str) -> ModelPlace:
    """The model that a directory, a GGUF file or a hub id names.

    Raises:
        ModelFilesError: `not-found`.
    """
    path = Path(name)
    if path.suffix == ".gguf" and path.is_file():
        return ModelPlace(name=name, directory=path.parent, gguf=path.name)
    if path.is_dir():
        return ModelPlace(name=name, directory=path, gguf=_gguf_in(path))
    if path.exists() or name.startswith((".", "/", "~")) or name.count("/") != 1:
        hint = "name a directory, a .gguf file or a hub id owner/name"
        raise ModelFilesError("no such model", code="not-found", place=name, hint=hint)
    try:
        return ModelPlace(
            name=name, directory=Path(snapshot_download(name, allow_patterns=list(_HUB_FILES))), gguf=None
        )
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise ModelFilesError(
            f"neither a directory here nor a model that the hub gives: {_first_line(error)}",
            code="not-found",
            place=name,
            hint="check the name, the network, and HF_TOKEN for gated models",
        ) from error


def check_fit(place: ModelPlace, manifest: Manifest) -> None:
    """The model's own tokenizer and template, where it has them, are those that the set was packed with.

    Raises:
        ShardError: `tokenizer-differs`, `template-differs`.
    """
    files = read_text_files(place.directory)
    if "tokenizer.json" not in files:
        return
    check_same_files(
        _text_files(place, files, manifest),
        manifest,
        place=place.name,
        hint="pack with the model that you train, or train the model that you packed with",
    )


def check_carried(directory: Path, manifest: Manifest) -> None:
    """What a set carries of its model, and the trained one gets byte for byte, is what the set was packed with.

    Raises:
        ShardError: `no-tokenizer`, `tokenizer-differs`, `template-differs`, and `damaged-manifest` where that names
            other stop tokens. ModelFilesError: `bad-model-file`.
    """
    files, hint = read_text_files(directory), "copy the set again, or pack it again"
    if "tokenizer.json" not in files:
        place = str(directory / "tokenizer.json")
        raise ShardError("the set carries no tokenizer", code="no-tokenizer", place=place, hint=hint)
    found, named = build_model(str(directory), files), manifest.model
    check_same_files(found, manifest, place=str(directory), hint=hint)
    if (list(found.stop_ids), found.pad_id) != (named.stop_ids, named.pad_id):
        what = f"the manifest names other stop tokens ({named.stop_ids}) or another pad token than the set's model has"
        raise ShardError(what, code="damaged-manifest", place=str(directory.parent), hint=hint)


def check_same_files(found: ModelFiles, manifest: Manifest, *, place: str, hint: str) -> None:
    """ShardError `tokenizer-differs`, `template-differs`: a set was packed with other files than these."""
    packed = manifest.model
    for what, own, wanted in (
        ("tokenizer", found.tokenizer_sha256, packed.tokenizer_sha256),
        ("template", found.template_sha256, packed.template_sha256),
    ):
        if own != wanted:
            raise ShardError(
                f"the model's {what} is not the one that the set was packed with ({packed.name})",
                code=f"{what}-differs",
                place=place,
                hint=hint,
            )


def load(place: ModelPlace, config: TrainConfig, *, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The model in `dtype`, in training mode; the weights are all there, or all random and seeded.

    Raises:
        ModelFilesError: `no-weights`, `missing-weights`.
    """
    if config.init == "random":
        with _named_failures(place):
            return _random(place.directory, seed=config.seed).to(dtype).train()
    return pretrained(place, dtype=dtype).train()


def pretrained(place: ModelPlace, *, dtype: torch.dtype) -> PreTrainedModel:
    """The model with all the weights of its files.

    Raises:
        ModelFilesError: `no-weights`, `missing-weights`.
    """
    with _named_failures(place):
        model, report = AutoModelForCausalLM.from_pretrained(
            place.directory, dtype=dtype, output_loading_info=True, **_source(place)
        )
    _check_complete(place, report)
    return _with_its_own_attention(model)


@contextmanager
def _named_failures(place: ModelPlace) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        if is_out_of_memory(error):
            raise
        raise ModelFilesError(
            f"the model cannot be opened: {_first_line(error)}",
            code="no-weights",
            place=place.name,
            hint="a directory needs config.json and *.safetensors, or a .gguf; --init random needs config.json only",
        ) from error


def check_lengths(model: PreTrainedModel, manifest: Manifest) -> None:
    """The longest document has a position for every token.

    Raises:
        ShardError: `document-too-long`.
    """
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if positions is not None and manifest.lengths.max > positions:
        raise ShardError(
            f"the longest document has {manifest.lengths.max} tokens, the model {positions} positions",
            code="document-too-long",
            place=manifest.model.name,
            hint=f"pack with --max-length {positions}",
        )


def _gguf_in(directory: Path) -> str | None:
    if any(next(directory.glob(pattern), None) for pattern in WEIGHT_FILES):
        return None
    found = sorted(path.name for path in directory.glob("*.gguf"))
    if len(found) > 1:
        raise ModelFilesError(
            f"several GGUF files: {', '.join(found)}",
            code="several-weights",
            place=str(directory),
            hint="name one of them",
        )
    return found[0] if found else None


def _source(place: ModelPlace) -> dict[str, Any]:
    # Saving raises later unless the quantised weights are plain tensors from the start.
    gguf = {"gguf_file": place.gguf, "quantization_config": GgufConfig(dequantize=True)}
    return gguf if place.gguf else {"local_files_only": True}


def _random(directory: Path, *, seed: int) -> PreTrainedModel:
    torch.manual_seed(seed)
    config = AutoConfig.from_pretrained(directory, local_files_only=True)
    return _with_its_own_attention(AutoModelForCausalLM.from_config(config, dtype=torch.float32))


def _with_its_own_attention(model: PreTrainedModel) -> PreTrainedModel:
    """Soft-capped scores need the written-out form: transformers 5.17 gives Gemma 2 one that forgets the cap."""
    if getattr(model.config.get_text_config(), "attn_logit_softcapping", None):
        model.set_attn_implementation("eager")
    return model


def _check_complete(place: ModelPlace, report: dict[str, Any]) -> None:
    """Weights that the files lack would be random numbers, and only a warning would say so."""
    absent = sorted(map(str, [*report.get("missing_keys", ()), *report.get("mismatched_keys", ())]))
    if absent:
        raise ModelFilesError(
            f"{len(absent)} weights are not in the files, the first: {absent[0]}",
            code="missing-weights",
            place=place.name,
            hint="download the model again; is it a causal language model?",
        )


def _text_files(place: ModelPlace, files: dict[str, bytes], manifest: Manifest) -> ModelFiles:
    """The model's own text files; a base model has no template, and is trained for the packed set's."""
    stop_ids = json.dumps({"eos_token_id": manifest.model.stop_ids}).encode()
    filled = {"generation_config.json": stop_ids, **files}
    try:
        return build_model(place.name, filled)
    except ModelFilesError as error:
        if error.code != "no-template":
            raise
    return build_model(place.name, filled | {"chat_template.jinja": manifest.model.template.encode("utf-8")})


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__

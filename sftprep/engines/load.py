"""Reads a model's own files: a local directory, or a Hugging Face hub id."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from tokenizers import AddedToken, Tokenizer

from sftprep.engines.canonical import canonical
from sftprep.engines.model import ADDITIONAL_TEMPLATES, TEXT_FILES, ModelFiles, Opened, text_files
from sftprep.engines.tokenizer import tokenizer_of
from sftprep.errors import ModelFilesError

_NAMED_TOKENS: Final = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")


def load_model(name: str, *, keep_open: bool = False) -> ModelFiles:
    """The files of a model directory or hub id, with what was made of its tokenizer where that is kept open.

    Raises:
        ModelFilesError: `not-found`, `no-tokenizer`, `bad-model-file`, `no-template`, `no-stop-tokens`.
    """
    model = build_model(name, read_text_files(_directory(name)))
    if not keep_open:
        model.opened.take()
    return model


def read_text_files(directory: Path) -> dict[str, bytes]:
    """The bytes of every file of a model directory that decides ids, by its path there."""
    return {file: (directory / file).read_bytes() for file in text_files(directory)}


def build_model(name: str, files: Mapping[str, bytes]) -> ModelFiles:
    """The same from the files' bytes, by file name."""
    if "tokenizer.json" not in files:
        raise ModelFilesError(
            "no tokenizer.json",
            code="no-tokenizer",
            place=name,
            hint="save the tokenizer once with transformers: AutoTokenizer.from_pretrained(…).save_pretrained(…)",
        )
    config = _json(name, files, "tokenizer_config.json")
    special = _special_tokens(config, _json(name, files, "special_tokens_map.json"))
    tokenizer, tokenizer_json, parts = _tokenizer(name, files["tokenizer.json"], config)
    templates = _templates(name, files, config)
    stop_ids = _stop_ids(tokenizer, special, [_json(name, files, f) for f in ("generation_config.json", "config.json")])
    if not stop_ids:
        raise ModelFilesError(
            "neither generation_config.json nor the tokenizer names a token that ends an answer",
            code="no-stop-tokens",
            place=name,
            hint='add {"eos_token_id": …} as generation_config.json',
        )
    pad = special.get("pad_token", special.get("eos_token", ""))
    pad_id = tokenizer.token_to_id(pad) if pad else None
    return ModelFiles(
        name=name,
        files=dict(files),
        tokenizer_json=tokenizer_json,
        template=templates["default"],
        tool_template=templates.get("tool_use"),
        special_tokens=special,
        stop_ids=stop_ids,
        stop_tokens=tuple(str(tokenizer.id_to_token(i)) for i in stop_ids),
        control_tokens=tuple(
            t.content for i, t in tokenizer.get_added_tokens_decoder().items() if t.special or i in stop_ids
        ),
        vocab_size=_vocab_size(tokenizer, parts),
        pad_id=stop_ids[0] if pad_id is None else pad_id,
        tokenizer_sha256=hashlib.sha256(canonical(parts)).hexdigest(),
        template_sha256=hashlib.sha256(_hashed(templates).encode("utf-8")).hexdigest(),
        opened=Opened(tokenizer, parts),
    )


def write_model(model: ModelFiles, directory: Path) -> None:
    """Copy the model's files, byte for byte, into a new directory."""
    directory.mkdir(parents=True)
    for file, content in model.files.items():
        (directory / file).parent.mkdir(exist_ok=True)
        (directory / file).write_bytes(content)


def _directory(name: str) -> Path:
    path = Path(name)
    if path.is_dir():
        return path
    if path.exists() or name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise ModelFilesError(
            "no such model directory", code="not-found", place=name, hint="name a directory or a hub id owner/name"
        )
    return _of_hub(name)


def _of_hub(name: str) -> Path:
    # The hub's client takes 0.1 s to import, which a model that is here has no use for.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=[*TEXT_FILES, f"{ADDITIONAL_TEMPLATES}*.jinja"]))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelFilesError(
            f"neither a directory here nor a model that the hub gives: {reason}",
            code="not-found",
            place=name,
            hint="check the name, the network, and HF_TOKEN for gated models",
        ) from error


def _json(name: str, files: Mapping[str, bytes], file: str) -> dict[str, Any]:
    if file not in files:
        return {}
    try:
        value = json.loads(files[file].decode("utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ModelFilesError(f"not JSON: {error}", code="bad-model-file", place=f"{name}/{file}") from error
    if not isinstance(value, dict):
        raise ModelFilesError("not a JSON object", code="bad-model-file", place=f"{name}/{file}")
    return value


def _special_tokens(*configs: Mapping[str, Any]) -> dict[str, str]:
    """What transformers gives the template: `bos_token` and the like, where the files name one."""
    found: dict[str, str] = {}
    for key in (f"{kind}_token" for kind in _NAMED_TOKENS):
        values = [config.get(key) for config in configs]
        texts = [value.get("content") if isinstance(value, dict) else value for value in values]
        named = next((text for text in texts if isinstance(text, str)), None)
        if named is not None:
            found[key] = named
    return found


def _tokenizer(name: str, content: bytes, config: Mapping[str, Any]) -> tuple[Tokenizer, str, Any]:
    """The tokenizer with the added tokens that only tokenizer_config.json names, as transformers adds them.

    Beside it its JSON, as text and as read.
    """
    try:
        text = content.decode("utf-8")
        parts = json.loads(text)
        tokenizer = tokenizer_of(parts, text)
    except Exception as error:  # the tokenizers library raises no narrower class
        raise ModelFilesError(
            f"not a tokenizer: {error}", code="bad-model-file", place=f"{name}/tokenizer.json"
        ) from error
    missing = [
        (int(token_id), token)
        for token_id, token in sorted(config.get("added_tokens_decoder", {}).items(), key=lambda item: int(item[0]))
        if tokenizer.token_to_id(token["content"]) is None
    ]
    for token_id, token in missing:
        tokenizer.add_tokens([AddedToken(**{key: token[key] for key in token if not key.startswith("_")})])
        if tokenizer.token_to_id(token["content"]) != token_id:
            raise ModelFilesError(
                f"tokenizer_config.json gives {token['content']!r} the id {token_id}, the tokenizer another",
                code="bad-model-file",
                place=f"{name}/tokenizer_config.json",
            )
    if not missing:
        return tokenizer, text, parts
    text = tokenizer.to_str()
    return tokenizer, text, json.loads(text)


def _templates(name: str, files: Mapping[str, bytes], config: Mapping[str, Any]) -> dict[str, str]:
    """All templates by name; the one that rows without tools go through is `default`."""
    found = _json(name, files, "chat_template.json").get("chat_template", config.get("chat_template"))
    if isinstance(found, list):
        found = {entry["name"]: entry["template"] for entry in found}
    templates: dict[str, str] = dict(found) if isinstance(found, dict) else {}
    if isinstance(found, str):
        templates["default"] = found
    if "chat_template.jinja" in files:
        templates = {"default": _text(name, files, "chat_template.jinja")}
    for file in sorted(files):
        if file.startswith(ADDITIONAL_TEMPLATES):
            templates[Path(file).stem] = _text(name, files, file)
    if "default" not in templates:
        raise ModelFilesError(
            f"no chat template called default, only {', '.join(sorted(templates))}"
            if templates
            else "no chat template",
            code="no-template",
            place=name,
            hint="base models have none; copy the chat_template.jinja that the server will use into the directory",
        )
    return templates


def _text(name: str, files: Mapping[str, bytes], file: str) -> str:
    try:
        return files[file].decode("utf-8")
    except UnicodeDecodeError as error:
        raise ModelFilesError(f"not UTF-8: {error}", code="bad-model-file", place=f"{name}/{file}") from error


def _hashed(templates: Mapping[str, str]) -> str:
    """The template's text; of several, those that any row goes through."""
    tool_use = templates.get("tool_use")
    return templates["default"] if tool_use is None else f"{templates['default']}\0{tool_use}"


def _stop_ids(tokenizer: Tokenizer, special: Mapping[str, str], configs: list[dict[str, Any]]) -> tuple[int, ...]:
    """The ids on which a server stops: generation_config's (else config's), and the tokenizer's own end token."""
    named: Any = next((config["eos_token_id"] for config in configs if config.get("eos_token_id") is not None), [])
    ids = {int(i) for i in (named if isinstance(named, list) else [named])}
    own = tokenizer.token_to_id(special["eos_token"]) if "eos_token" in special else None
    if own is not None:
        ids.add(own)
    return tuple(sorted(i for i in ids if tokenizer.id_to_token(i) is not None))


def _vocab_size(tokenizer: Tokenizer, parts: Mapping[str, Any]) -> int:
    """The number that all ids are below. Its own vocabulary as a mapping would cost 0.1 s where it is large."""
    vocab = parts["model"]["vocab"]
    ids = vocab.values() if isinstance(vocab, dict) else range(len(vocab))
    largest: int = max([*ids, *tokenizer.get_added_tokens_decoder()])
    return 1 + largest

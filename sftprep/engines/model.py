"""What a model directory says about text: its tokenizer, its chat template, its stop tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

TEXT_FILES: Final = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "config.json",
)
"""Everything that decides ids; copied into a shard set byte for byte."""

ADDITIONAL_TEMPLATES: Final = "additional_chat_templates/"
"""Where transformers keeps templates beside the default one; `tool_use` is for rows with tools."""


class Opened:
    """What reading a model has made of its tokenizer.json, for who needs it next: made once, and taken out once.

    Nothing is in one that was taken from, nor in what another process gets of it.
    """

    def __init__(self, tokenizer: Any = None, parts: Any = None) -> None:
        self._held = (tokenizer, parts)

    def take(self) -> tuple[Any, Any]:
        """The `tokenizers.Tokenizer`, and the file's JSON, which nobody else has; None for each where it is gone."""
        held, self._held = self._held, (None, None)
        return held

    def __reduce__(self) -> tuple[type[Opened], tuple[()]]:
        return Opened, ()


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """The files of a model that decide ids, read once.

    `files` holds the bytes of every file that a shard set copies (tokenizer.json, chat_template.jinja ...), by name.
    `special_tokens` is what the template sees (`bos_token` ...). `stop_ids` come from tokenizer and generation_config,
    ascending; `stop_tokens` are their texts in the same order. `control_tokens` are all added tokens that are special
    or end an answer.
    """

    name: str
    files: Mapping[str, bytes]
    tokenizer_json: str
    template: str
    special_tokens: Mapping[str, str]
    stop_ids: tuple[int, ...]
    stop_tokens: tuple[str, ...]
    control_tokens: tuple[str, ...]
    vocab_size: int
    pad_id: int
    tokenizer_sha256: str
    template_sha256: str
    tool_template: str | None = None
    """The template of rows with tools, where the model has one (`tool_use`); `template` is that of all others."""
    opened: Opened = field(default_factory=Opened, repr=False, compare=False)
    """Of `tokenizer_json`, where it was asked for."""


def text_files(directory: Path) -> list[str]:
    """The files of a model directory that decide ids, those that are there, by their paths in it."""
    additional = sorted(path.name for path in (directory / ADDITIONAL_TEMPLATES).glob("*.jinja"))
    names = (*TEXT_FILES, *(f"{ADDITIONAL_TEMPLATES}{file}" for file in additional))
    return [name for name in names if (directory / name).is_file()]

"""What a model directory says about text: its tokenizer, its chat template, its stop tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

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


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """The files of a model that decide ids, read once.

    `files` holds the bytes of every file that a shard set copies (tokenizer.json, chat_template.jinja ...), by name.
    `special_tokens` is what the template sees (`bos_token` ...). `stop_ids` come from tokenizer and generation_config,
    ascending; `stop_tokens` are their texts in the same order. `control_tokens` are all special added tokens.
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


def text_files(directory: Path) -> list[str]:
    """The files of a model directory that decide ids, those that are there, by their paths in it."""
    additional = sorted(path.name for path in (directory / ADDITIONAL_TEMPLATES).glob("*.jinja"))
    names = (*TEXT_FILES, *(f"{ADDITIONAL_TEMPLATES}{file}" for file in additional))
    return [name for name in names if (directory / name).is_file()]

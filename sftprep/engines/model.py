"""What a model directory says about text: its tokenizer, its chat template, its stop tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


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

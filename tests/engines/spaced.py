"""Small SentencePiece-style tokenizers, made on the spot: in every form in which such a one puts a space in front."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

_PIECES: Final = "abcdehilnorstuwxyz.,!?:<>|0123456789_/[]\n"
_MERGES: Final = [
    "t h",
    "th e",
    "▁ the",
    "▁ a",
    "a n",
    "an s",
    "i n",
    "▁ ▁",
    "▁▁ ▁▁",
    "▁ s",
    "o n",
    "▁a n",
    ". ▁",
    "▁ [",
]
_ADDED: Final = ["<unk>", "<s>", "</s>", "<|user|>", "<|assistant|>", "<|end|>"]
_SPACES: Final = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
_PREPEND: Final = {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}, _SPACES]}
_METASPACE: Final = {"type": "Metaspace", "replacement": "▁", "split": False}
_STRIP: Final = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}]

FORMS: Final[dict[str, tuple[Any, Any, list[Any]]]] = {
    "prepend": (_PREPEND, None, _STRIP),
    "always": (None, {**_METASPACE, "prepend_scheme": "always"}, _STRIP),
    "first": (None, {**_METASPACE, "prepend_scheme": "first"}, _STRIP),
    "never": (None, {**_METASPACE, "prepend_scheme": "never"}, []),
    "split": (_SPACES, {"type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious"}, []),
}
"""Normaliser, pre-tokenizer, and what the decoder does last: Llama 2's, two of Metaspace's, none, Gemma's."""

PHI: Final = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
INST: Final = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[in] {{ m.content }} [/in]"
    "{% else %} {{ m.content }}</s>{% endif %}{% endfor %}"
)
CLOSE: Final = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""As Phi-3, as Mistral, which has no token that cuts before an answer, and with an answer right behind such a token."""


def tokenizer(form: str) -> dict[str, Any]:
    """The JSON of one."""
    normalizer, pre_tokenizer, last = FORMS[form]
    pieces = [*_ADDED, *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *_PIECES]
    pieces += [merge.replace(" ", "") for merge in _MERGES]
    joined = [{"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    if pre_tokenizer is not None and pre_tokenizer["type"] == "Split":
        pre_tokenizer = {**pre_tokenizer, "invert": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": n, "content": text, "special": True, **flags} for n, text in enumerate(_ADDED)],
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": [*joined, {"type": "Fuse"}, *last]},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": {piece: number for number, piece in enumerate(dict.fromkeys(pieces))},
            "merges": _MERGES,
        },
    }


def write_model(directory: Path, form: str, template: str) -> Path:
    """A model directory with such a tokenizer."""
    directory.mkdir(parents=True)
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer(form)))
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(special))
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 5]}))
    (directory / "chat_template.jinja").write_text(template)
    return directory

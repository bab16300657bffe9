"""The tokenizer that a shard set carries: by it rows are shown as text."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from sftprep.engines.load import load_model
from sftprep.errors import ShardError


def set_tokenizer(directory: Path) -> Tokenizer:
    """The tokenizer of the set in a directory, with the tokens that only tokenizer_config.json names.

    It is read here and not by the library, which opens no path that is not UTF-8.

    Raises:
        ShardError: `no-tokenizer`. ModelFilesError: `bad-model-file`, and others of a model directory.
    """
    model = directory / "model"
    file = model / "tokenizer.json"
    if not file.is_file():
        raise ShardError("the set carries no tokenizer", code="no-tokenizer", place=str(file), hint="pack it again")
    tokenizer: Tokenizer = load_model(str(model), keep_open=True).opened.take()[0]
    return tokenizer

"""Whether a row can be exact with a model's own template and tokenizer, and how long it is: what `pack` would say."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from sftprep.config.pack import PackConfig
from sftprep.data import Conversation, Finding, Severity
from sftprep.engines.load import load_model
from sftprep.errors import DataError, MaskError, TemplateError
from sftprep.prepare.chunk import OVER_LENGTH
from sftprep.prepare.compile import compiler
from sftprep.prepare.row_fit import FitRow, RowFit

_NOT_WRITTEN: Final = Path("-")


def fitter(model: str, *, max_length: int | None) -> FitRow:
    """Render and encode as `pack` does with its own defaults.

    Raises:
        UsageError: the model cannot be used.
        TemplateError: `template-syntax`.
    """
    config = PackConfig(files=(_NOT_WRITTEN,), model=model, out=_NOT_WRITTEN, packing=False, max_length=max_length)
    compile_row = compiler(load_model(model), config)

    def fit(conversation: Conversation) -> tuple[RowFit | None, tuple[Finding, ...]]:
        try:
            documents = compile_row(conversation).documents
        except (MaskError, TemplateError) as error:
            return None, (_finding(conversation, error),)
        if not documents or not all(document.num_trained for document in documents):
            return None, (_finding(conversation, MaskError("a sample has no trained token", code="nothing-trained")),)
        lengths = [len(document.ids) for document in documents]
        found = RowFit(sum(lengths), sum(document.num_trained for document in documents), max(lengths))
        return found, _too_long(found, conversation, max_length)

    return fit


def _finding(conversation: Conversation, error: DataError) -> Finding:
    place = error.place or "/messages"
    return Finding(error.code, Severity.ERROR, conversation.address, place, error.message, error.hint)


def _too_long(found: RowFit, conversation: Conversation, max_length: int | None) -> tuple[Finding, ...]:
    if max_length is None or found.longest <= max_length:
        return ()
    what = f"{found.longest:,} tokens, {max_length:,} are allowed: {found.num_trained:,} trained tokens would be lost"
    hint = "raise --max-length, or shorten the conversation: nothing is cut"
    return (Finding(OVER_LENGTH, Severity.ERROR, conversation.address, "/messages", what, hint),)

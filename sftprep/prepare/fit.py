"""Whether a row can be exact with a model's own template and tokenizer, and how long it is: what `pack` would say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from sftprep.config.pack import PackConfig
from sftprep.data import Conversation, Finding, Json, Severity
from sftprep.engines.load import load_model
from sftprep.errors import DataError, MaskError, TemplateError
from sftprep.prepare.chat_templates import ChatTemplates
from sftprep.prepare.chunk import OVER_LENGTH
from sftprep.prepare.compile import CompileRow, compiler
from sftprep.prepare.row_fit import FitRow, RowFit
from sftprep.templates.adapt import adapt_messages, probe_form
from sftprep.templates.control import typed_errors
from sftprep.templates.policy import ControlTokens
from sftprep.templates.template import ChatTemplate, Request

_NOT_WRITTEN: Final = Path("-")
_RAISED: Final = "template-raised"
_TYPED: Final = "control-token"
_NOTHING: Final = "nothing-trained"
_MESSAGES: Final = "/messages"
_MOST_LOOKS: Final = 16


def fitter(model: str, *, max_length: int | None) -> FitRow:
    """Render and encode as `pack` does with its own defaults.

    Raises:
        UsageError: the model cannot be used.
        TemplateError: `template-syntax`.
    """
    config = PackConfig(files=(_NOT_WRITTEN,), model=model, out=_NOT_WRITTEN, packing=False, max_length=max_length)
    files = load_model(model)
    compile_row = compiler(files, config)
    compile_rest = compiler(files, config.model_copy(update={"control_tokens": ControlTokens.SPLIT}))
    templates = ChatTemplates.of(files, config.now, ChatTemplate)

    def fit(conversation: Conversation) -> tuple[RowFit | None, tuple[Finding, ...]]:
        try:
            documents = compile_row(conversation).documents
        except (MaskError, TemplateError) as error:
            template = templates.for_tools(conversation.tools)
            if error.code == _RAISED:
                error.place = _refused_from(conversation, template)
            typed = typed_errors(conversation, template.control_pattern) if error.code == _TYPED else ()
            named: list[DataError] = [*typed] or [error]  # No field holds a token that the template joined.
            faults = sorted((*named, *_hidden(conversation, named[-1], compile_rest)), key=_turn_of)
            return None, tuple(_finding(conversation, fault) for fault in faults)
        if not documents or not all(document.num_trained for document in documents):
            return None, (_finding(conversation, MaskError("a sample has no trained token", code=_NOTHING)),)
        lengths = [len(document.ids) for document in documents]
        found = RowFit(sum(lengths), sum(document.num_trained for document in documents), max(lengths))
        return found, _too_long(found, conversation, max_length)

    return fit


def _hidden(conversation: Conversation, error: DataError, compile_row: CompileRow) -> Iterator[DataError]:
    """What is wrong beside an error that ended the look at a row: each turn that has a fault is context from then on.

    Each look takes as long as the first: a row whose every turn has a fault is looked at a few times, no more.
    """
    weights = list(conversation.weights)
    for _ in range(_MOST_LOOKS):
        if error.code != _TYPED:  # That is mere text to this compiler, wherever it stands.
            turn = _turn_of(error)
            if turn < 0 or not weights[turn]:
                return
            weights[turn] = 0.0
        try:
            compile_row(replace(conversation, weights=weights))
            return
        except (MaskError, TemplateError) as found:
            error = found
        if error.code in {_RAISED, _NOTHING}:
            return
        yield error


def _turn_of(error: DataError) -> int:
    """The number of the message that an error names; -1 for none."""
    steps = error.place.split("/")
    return int(steps[2]) if steps[1:2] == ["messages"] and len(steps) > 2 else -1


def _refused_from(conversation: Conversation, template: ChatTemplate) -> str:
    """A pointer to the first message that the template refuses after those before it, which it renders.

    To all of them where it refuses something else, such as a conversation without a question.
    """
    messages = adapt_messages(conversation.messages, probe_form(template))
    request = Request(tools=conversation.tools, kwargs=conversation.template_kwargs)

    def renders(some: Sequence[Mapping[str, Json]]) -> bool:
        try:
            template.render(some, request, prompt=False)
        except TemplateError:
            return False
        return True

    # From the end, as a template may refuse a beginning that lacks what a later message brings.
    rendered = next((length for length in range(len(messages), 0, -1) if renders(messages[:length])), 0)
    if rendered == len(messages):
        return _MESSAGES
    is_first = not rendered and len(messages) > 1 and renders(messages[1:])
    return f"{_MESSAGES}/{rendered}" if rendered or is_first else _MESSAGES


def _finding(conversation: Conversation, error: DataError) -> Finding:
    place = error.place or _MESSAGES
    hint = f"{error.hint} (options of pack)" if "--" in error.hint else error.hint
    return Finding(error.code, Severity.ERROR, conversation.address, place, error.message, hint)


def _too_long(found: RowFit, conversation: Conversation, max_length: int | None) -> tuple[Finding, ...]:
    if max_length is None or found.longest <= max_length:
        return ()
    what = f"{found.longest:,} tokens, {max_length:,} are allowed: {found.num_trained:,} trained tokens would be lost"
    hint = "raise --max-length, or shorten the conversation: nothing is cut"
    return (Finding(OVER_LENGTH, Severity.ERROR, conversation.address, _MESSAGES, what, hint),)

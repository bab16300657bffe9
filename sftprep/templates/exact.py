"""One exact turn, and the checks that it passed."""

from __future__ import annotations

import re
from dataclasses import dataclass

from sftprep.errors import MaskError
from sftprep.templates.coverage import lost_field, repeated_field
from sftprep.templates.runs import Run, cut
from sftprep.templates.template import ChatTemplate, Request, TracedText
from sftprep.templates.turns import End, early_stop, foreign_path, owner

NO_TERMINATOR = "no-terminator"
FIELD_LOST = "field-lost"
FIELD_REPEATED = "field-repeated"
FOREIGN_TEXT = "foreign-text"
ILL_POSED = "ill-posed"
CONTRADICTED = "contradicted"
EARLY_STOP = "early-stop"


@dataclass(frozen=True, slots=True)
class ExactTurn:
    """One trained turn in its own context: `traced.text[:start]` is the prompt, `[start:end.stop]` the completion."""

    message: int
    request: Request
    kind: str
    """`packed` (prompt and completion are one render), `switched` (so, under other keyword arguments), `spliced` (the
    completion moved behind the prompt), `contradicted` (so, though the template opens the turn otherwise)."""
    traced: TracedText
    start: int
    end: End

    @property
    def size(self) -> int:
        """Characters that the model must emit."""
        return self.end.stop - self.start

    @property
    def exact_text(self) -> str:
        """Prompt and completion."""
        return self.traced.text[: self.end.stop]


def problem_of(turn: ExactTurn, *, template: ChatTemplate, allow: frozenset[str]) -> MaskError | None:
    """What is wrong with a turn: text of others, a stop within, a field lost or repeated; None where nothing is.

    Everything that the turn says must be in its completion or in the end of its prompt, once; nobody else may say
    anything in its completion, and no stop token of the template's may stand before its end. `allow` are the codes
    that are waived.
    """
    early = early_stop(turn.traced, (turn.start, turn.end.stop_start), template.stop_tokens)
    if early is not None:
        what = f"the template writes the stop token {early!r} before all that the turn says: a server stops there"
        return mask_error(turn.message, EARLY_STOP, what)
    path = foreign_path(turn.traced, turn.message, (turn.start, turn.end.stop))
    if path is not None:
        return mask_error(turn.message, FOREIGN_TEXT, f"the completion holds text of {path}")
    span = (_own_beginning(turn), turn.end.stop)
    lost = None if FIELD_LOST in allow else lost_field(turn.traced, turn.message, span, template.text)
    if lost is not None:
        what = f"{lost} does not reach the text whole: the template drops or cuts it"
        return mask_error(turn.message, FIELD_LOST, what, lost)
    repeated = None if FIELD_REPEATED in allow else repeated_field(turn.traced, turn.message, span)
    if repeated is not None:
        return mask_error(turn.message, FIELD_REPEATED, f"{repeated} reaches the text twice", repeated)
    return None


def refuse_typed_stops(turn: ExactTurn, pattern: re.Pattern[str]) -> None:
    """MaskError `early-stop` where the turn itself says a stop token, read as one: no server lets it say more."""
    # A pattern asks nothing of a symbolic text: the row that it was made of was looked through before.
    typed = pattern.search(turn.traced.text, turn.start, turn.end.stop_start)
    if typed:
        raise MaskError(
            f"the answer itself holds the stop token {typed.group()!r}: a server stops there",
            code=EARLY_STOP,
            place=f"/messages/{turn.message}",
            hint="clean the row; --control-tokens split encodes it as text",
        )


def _own_beginning(turn: ExactTurn) -> int:
    """Where the turn's own text begins: before `start` where the prompt supplies the first of it (`<think>`)."""
    begin = turn.start
    for at in turn.traced.before(turn.start):
        if owner(turn.traced, at.run) != turn.message:
            break
        begin = at.start
    return begin


def behind_prompt(turn: ExactTurn, prompt: TracedText) -> ExactTurn:
    """Move a completion behind another prompt."""
    size = len(prompt.text)
    shift = len(prompt.sources)
    own = [
        Run(run.length, run.source if run.source < 0 else run.source + shift, run.offset)
        for run in cut(turn.traced.runs, turn.start, turn.end.stop)
    ]
    text = prompt.text + turn.traced.text[turn.start : turn.end.stop]
    moved = size - turn.start
    return ExactTurn(
        message=turn.message,
        request=turn.request,
        kind="spliced",
        traced=TracedText(text, (*prompt.runs, *own), [*prompt.sources, *turn.traced.sources]),
        start=size,
        end=End(turn.end.stop_start + moved, turn.end.stop + moved),
    )


def mask_error(message: int, code: str, what: str, path: str = "") -> MaskError:
    """The error of a turn, with its place and its hint."""
    hints = {
        ILL_POSED: "--merge-consecutive makes one message of the two; or give one of them weight 0",
        CONTRADICTED: "another version of the template may be exact; --allow contradicted trains what it shows",
        NO_TERMINATOR: "check generation_config.json; --allow no-terminator trains the turn without a stop token",
        FIELD_LOST: "--allow field-lost trains what the template shows",
        FIELD_REPEATED: "--allow field-repeated trains what the template shows",
        EARLY_STOP: "the template makes several messages of the turn; write them as several, if it can render them",
        FOREIGN_TEXT: "the template copies other messages into the turn",
    }
    return MaskError(what, code=code, place=f"/messages/{message}{path}", hint=hints[code])

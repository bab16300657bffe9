"""The contract of exact masks: for each trained turn, the prompt that a server renders and what the model must emit.

`P_k` is the template's text for `messages[:k]` with the generation prompt; `R_k` its text for `messages[:k + 1]`.
The completion `C_k` is what follows `P_k` in `R_k`, through the stop token. A later render shows turn `k` exactly
if it starts with `P_k + C_k`; then one sample trains both turns. Where a template rewrites its history, no later
render does, and the turn gets a sample of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NoReturn

from sftprep.data import Json
from sftprep.errors import MaskError, TemplateError
from sftprep.templates.runs import Run, cut
from sftprep.templates.template import ChatTemplate, Request, TracedText
from sftprep.templates.turns import (
    End,
    find_end,
    first_said,
    foreign_path,
    last_said,
    lost_field,
    opening_stop,
    owner,
    placed,
    repeated_field,
    trailing_literal,
    turn_start,
)

Messages = Sequence[Mapping[str, Json]]

NO_TERMINATOR = "no-terminator"
FIELD_LOST = "field-lost"
FIELD_REPEATED = "field-repeated"


@dataclass(frozen=True, slots=True)
class ExactTurn:
    """One trained turn in its own context: `traced.text[:start]` is the prompt, `[start:end.stop]` the completion."""

    message: int
    request: Request
    kind: str
    """`packed` (prompt and completion are one render), `switched` (so, under other keyword arguments), `spliced`."""
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


class TurnResolver:
    """Finds the exact prompt and completion of the turns of one conversation."""

    def __init__(self, template: ChatTemplate, messages: Messages, request: Request, allow: frozenset[str]) -> None:
        self.template = template
        self.messages = messages
        self.request = request
        self.allow = allow

    def resolve(self, message: int) -> ExactTurn:
        """The turn in its own context.

        Raises:
            MaskError: with the code of what makes the turn inexact.
            TemplateError: when the template refuses the messages before the turn.
        """
        if message == 0:
            _fail(message, "ill-posed", "an assistant message opens the conversation, so no server has a prompt for it")
        if self.messages[message - 1].get("role") == "assistant":
            _fail(message, "ill-posed", "two assistant messages in a row: the first never ends for the second to begin")
        tried = self._tried(message, self.request, "packed")
        if isinstance(tried, ExactTurn) and not self._has_scaffold(tried):
            return tried
        switched = self._switched(message, tried if isinstance(tried, ExactTurn) else None)
        if switched is not None:
            return switched
        if isinstance(tried, MaskError):
            raise tried
        turn = self._spliced(message)
        self._check(turn)
        return turn

    def _tried(self, message: int, request: Request, kind: str) -> ExactTurn | MaskError | None:
        """The checked turn where its prompt is a prefix of its own render, what is wrong with it, or None."""
        try:
            turn = self._as_rendered(message, request, kind)
            if turn is not None:
                self._check(turn)
        except MaskError as error:
            return error
        return turn

    def _as_rendered(self, message: int, request: Request, kind: str) -> ExactTurn | None:
        """The turn where its prompt is a prefix of its own render."""
        prompt = self.template.render(self.messages[:message], request, prompt=True)
        traced = self.template.trace(self.messages[: message + 1], request, prompt=False)
        if not traced.text.startswith(prompt):
            return None
        return self._ended(message, request, kind, (traced, len(prompt)))

    def _ended(self, message: int, request: Request, kind: str, at: tuple[TracedText, int]) -> ExactTurn:
        traced, start = at
        end = find_end(traced, message, start, self.template.stop_tokens)
        if end is None:
            traced, end = self._with_opening_stop(message, request, traced)
        if end is None:
            if NO_TERMINATOR not in self.allow:
                stops = " ".join(self.template.stop_tokens)
                _fail(message, NO_TERMINATOR, f"the template ends the turn with none of the stop tokens ({stops})")
            said = last_said(traced, message, start)
            end = End(said, said)
        return ExactTurn(message=message, request=request, kind=kind, traced=traced, start=start, end=end)

    def _with_opening_stop(self, message: int, request: Request, traced: TracedText) -> tuple[TracedText, End | None]:
        """The render with the token that opens whatever turn comes next, where that token is what stops the model."""
        calls = self.messages[message].get("tool_calls")
        follower: dict[str, Json] = {"role": "user", "content": "next"}
        if isinstance(calls, list) and calls and isinstance(calls[0], dict):
            follower = {"role": "tool", "content": "next", "tool_call_id": calls[0].get("id", "call00000")}
        try:
            probe = self.template.trace([*self.messages[: message + 1], follower], request, prompt=False)
        except TemplateError:
            return traced, None
        size = len(traced.text)
        end = opening_stop(probe, size, self.template.stop_tokens)
        if end is None or not probe.text.startswith(traced.text):
            return traced, None
        opened = Run(end.stop - size, -2 - message, 0)
        return TracedText(probe.text[: end.stop], (*traced.runs, opened), traced.sources), end

    def _has_scaffold(self, turn: ExactTurn) -> bool:
        """Whether the template wrote something between the prompt and what a turn without reasoning says."""
        if self.messages[turn.message].get("reasoning_content"):
            return False
        said = first_said(turn.traced, turn.message, turn.start)
        return bool(turn.traced.text[turn.start : min(said, turn.end.stop_start)].strip())

    def _switched(self, message: int, turn: ExactTurn | None) -> ExactTurn | None:
        """The turn under the keyword argument that makes it exact, or that leaves the model least to emit.

        A prompt that supplies a scaffold which the turn did not write (an empty block of reasoning) leaves the
        model less to emit; a switch that changes something else leaves as much, and is not taken.
        """
        best = turn
        for name, value in self.template.switches:
            if name in (self.request.kwargs or {}):
                continue
            found = self._try_switch(message, self.request.with_kwargs({name: value}))
            if found is not None and (best is None or found.size < best.size):
                best = found
        return best

    def _try_switch(self, message: int, request: Request) -> ExactTurn | None:
        try:
            tried = self._tried(message, request, "switched")
        except TemplateError:
            return None
        return tried if isinstance(tried, ExactTurn) else None

    def _spliced(self, message: int) -> ExactTurn:
        """The prompt as it is, and the completion cut out of a render that shows another prompt."""
        before = self.messages[:message]
        prompt = self.template.trace(before, self.request, prompt=True)
        bare = self.template.render(before, self.request, prompt=False)
        opening = prompt.text[len(bare) :] if prompt.text.startswith(bare) else prompt.text
        traced = self.template.trace(self.messages[: message + 1], self.request, prompt=False)
        begin = turn_start(traced, message)
        # Without a generation prompt of its own, the literal that ends the prompt must stand before the turn.
        anchor = opening or trailing_literal(prompt)
        shift = len(opening)
        if begin is None or not anchor or not traced.text[: begin + shift].endswith(anchor):
            _fail(
                message,
                "contradicted",
                f"the template opens the turn with {prompt.text[-40:]!r} and then renders it without that",
            )
        turn = self._ended(message, self.request, "spliced", (traced, begin + shift))
        return _spliced_turn(turn, prompt)

    def _check(self, turn: ExactTurn) -> None:
        """Everything that the turn says is in prompt tail and completion, once, and nobody else says anything there."""
        span = (turn.start, turn.end.stop)
        path = foreign_path(turn.traced, turn.message, span)
        if path is not None:
            _fail(turn.message, "foreign-text", f"the completion holds text of {path}")
        begin = _own_beginning(turn)
        path = lost_field(turn.traced, turn.message, (begin, turn.end.stop), self.template.text)
        if path is not None and FIELD_LOST not in self.allow:
            _fail(
                turn.message, FIELD_LOST, f"{path} does not reach the text whole: the template drops or cuts it", path
            )
        path = repeated_field(turn.traced, turn.message, (begin, turn.end.stop))
        if path is not None and FIELD_REPEATED not in self.allow:
            _fail(turn.message, FIELD_REPEATED, f"{path} reaches the text twice", path)


def _own_beginning(turn: ExactTurn) -> int:
    """Where the turn's own text begins: before `start` where the prompt supplies the first of it (`<think>`)."""
    begin = turn.start
    for at in reversed(list(placed(turn.traced.runs))):
        if at.start >= turn.start:
            continue
        if owner(turn.traced, at.run) != turn.message:
            break
        begin = at.start
    return begin


def _spliced_turn(turn: ExactTurn, prompt: TracedText) -> ExactTurn:
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


def _fail(message: int, code: str, what: str, path: str = "") -> NoReturn:
    hints = {
        "ill-posed": "merge the two messages, or give the first one weight 0",
        "contradicted": "no data can be exact with this template; another template version may be",
        NO_TERMINATOR: "check generation_config.json; --allow no-terminator trains the turn without a stop token",
        FIELD_LOST: "--allow field-lost trains what the template shows",
        FIELD_REPEATED: "--allow field-repeated trains what the template shows",
        "foreign-text": "the template copies other messages into the turn",
    }
    raise MaskError(what, code=code, place=f"/messages/{message}{path}", hint=hints[code])

"""The contract of exact masks: for each trained turn, the prompt that a server renders and what the model must emit.

`P_k` is the template's text for `messages[:k]` with the generation prompt; `R_k` its text for `messages[:k + 1]`.
The completion `C_k` is what follows `P_k` in `R_k`, through the stop token. A later render shows turn `k` exactly
if it starts with `P_k + C_k`; then one sample trains both turns. Where a template rewrites its history, no later
render does, and the turn gets a sample of its own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from sftprep.data import Json
from sftprep.errors import MaskError, TemplateError
from sftprep.templates.exact import (
    CONTRADICTED,
    ILL_POSED,
    NO_TERMINATOR,
    ExactTurn,
    behind_prompt,
    mask_error,
    problem_of,
)
from sftprep.templates.runs import Run
from sftprep.templates.template import ChatTemplate, Request, TracedText
from sftprep.templates.turns import (
    End,
    find_end,
    first_said,
    is_supervised,
    last_said,
    opening_stop,
    shows,
    trailing_literal,
    turn_start,
    unstamped_tail,
)

Messages = Sequence[Mapping[str, Json]]


class TurnResolver:
    """Finds the exact prompt and completion of the turns of one conversation."""

    def __init__(self, template: ChatTemplate, messages: Messages, request: Request, allow: frozenset[str]) -> None:
        self.template = template
        self.messages = messages
        self.request = request
        self.allow = allow
        self._texts: dict[tuple[int, str, bool], str] = {}

    def resolve_all(self, trained: Sequence[int]) -> list[list[ExactTurn]]:
        """The trained turns in groups: one render shows all turns of a group, the last of which it ends with.

        The group of the last turn comes first; in each group the turns are in order.

        Raises:
            MaskError: as `resolve`.
            TemplateError: as `resolve`.
        """
        groups: list[list[ExactTurn]] = []
        for message in reversed(trained):
            for group in groups:
                turn = self._shown_in(group[-1], message)
                if turn is not None:
                    group.insert(0, turn)
                    break
            else:
                groups.append([self.resolve(message)])
        return groups

    def _shown_in(self, base: ExactTurn, message: int) -> ExactTurn | None:
        """An earlier turn as the render of `base` shows it, if that is exactly what its own context shows."""
        if self._is_ill_posed(message):
            return None
        text = base.traced.text
        prompt = self._text(message, base.request, prompt=True)
        if not text.startswith(prompt):
            return None
        end = find_end(base.traced, message, len(prompt), self.template.stop_tokens)
        if end is None or end.stop > base.start:
            return None
        own = self._text(message + 1, base.request, prompt=False)
        exact = text[: end.stop]
        opened = exact.startswith(own) and exact[len(own) :].lstrip() in self.template.stop_tokens
        if not own.startswith(exact) and not opened:
            return None
        kind = "switched" if base.kind == "switched" else "packed"
        turn = ExactTurn(message, base.request, kind, base.traced, len(prompt), end)
        return (
            turn
            if not self._has_scaffold(turn) and problem_of(turn, template=self.template, allow=self.allow) is None
            else None
        )

    def _text(self, size: int, request: Request, *, prompt: bool) -> str:
        """The render of the first messages, made once."""
        key = (size, json.dumps(request.kwargs, sort_keys=True) if request.kwargs else "", prompt)
        if key not in self._texts:
            self._texts[key] = self.template.render(self.messages[:size], request, prompt=prompt)
        return self._texts[key]

    def _is_ill_posed(self, message: int) -> bool:
        if ILL_POSED in self.allow:
            return False
        return message == 0 or self.messages[message - 1].get("role") == "assistant"

    def resolve(self, message: int) -> ExactTurn:
        """The turn in its own context.

        Raises:
            MaskError: with the code of what makes the turn inexact.
            TemplateError: when the template refuses the messages before the turn.
        """
        if self._is_ill_posed(message):
            raise mask_error(message, ILL_POSED, "no other author's message stands before it, so no server prompts it")
        tried = self._tried(message, self.request, "packed")
        if isinstance(tried, ExactTurn) and not self._has_scaffold(tried):
            return tried
        switched, refused = self._switched(message, tried if isinstance(tried, ExactTurn) else None)
        if switched is not None:
            return switched
        if isinstance(tried, MaskError):
            raise tried
        return self._spliced_or_refused(message, refused)

    def _spliced_or_refused(self, message: int, refused: MaskError | None) -> ExactTurn:
        """The turn behind its prompt under the first request that allows it; else what is wrong with it.

        `refused` is what was wrong under a switch: it says more than that the plain request contradicts itself.
        """
        problems: list[MaskError | TemplateError] = []
        for request in (self.request, *self._switched_requests()):
            try:
                turn = self._spliced(message, request)
            except (MaskError, TemplateError) as error:
                problems.append(error)
                continue
            problem = problem_of(turn, template=self.template, allow=self.allow)
            if problem is None:
                return turn
            problems.append(problem)
        # The plain request comes first: what is wrong with it is what is told.
        raise refused if refused is not None and problems[0].code == CONTRADICTED else problems[0]

    def _tried(self, message: int, request: Request, kind: str) -> ExactTurn | MaskError | None:
        """The checked turn where its prompt is a prefix of its own render, what is wrong with it, or None."""
        try:
            turn = self._as_rendered(message, request, kind)
        except MaskError as error:
            return error
        problem = None if turn is None else problem_of(turn, template=self.template, allow=self.allow)
        return turn if problem is None else problem

    def _as_rendered(self, message: int, request: Request, kind: str) -> ExactTurn | None:
        """The turn where its prompt is a prefix of its own render."""
        prompt = self._text(message, request, prompt=True)
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
                raise mask_error(
                    message, NO_TERMINATOR, f"the template ends the turn with none of the stop tokens ({stops})"
                )
            said = last_said(traced, message, (start, len(traced.text)))
            end = End(said, said)
        return ExactTurn(message=message, request=request, kind=kind, traced=traced, start=start, end=end)

    def _with_opening_stop(self, message: int, request: Request, traced: TracedText) -> tuple[TracedText, End | None]:
        """The render with the token that opens whatever turn comes next, where that token is what stops the model."""
        for follower in self._followers(message):
            try:
                probe = self.template.trace([*self.messages[: message + 1], follower], request, prompt=False)
            except TemplateError:
                continue
            stop = _opened_by(probe, traced, message + 1, self.template.stop_tokens)
            if stop:
                size = len(traced.text)
                opened = Run(len(stop), -2 - message, 0)
                end = End(size + len(stop) - len(stop.lstrip()), size + len(stop))
                return TracedText(traced.text + stop, (*traced.runs, opened), traced.sources), end
        return traced, None

    def _followers(self, message: int) -> list[dict[str, Json]]:
        """Messages that may come next: a tool's result where tools were called, and a user's."""
        followers: list[dict[str, Json]] = [{"role": "user", "content": "next"}]
        calls = self.messages[message].get("tool_calls")
        if isinstance(calls, list) and calls and isinstance(calls[0], dict):
            call_id = calls[0].get("id", "call00000")
            followers.insert(0, {"role": "tool", "content": "next", "tool_call_id": call_id})
        return followers

    def _has_scaffold(self, turn: ExactTurn) -> bool:
        """Whether the template wrote something between the prompt and what a turn without reasoning says."""
        if not self.template.switches or shows(turn.traced, turn.message, "/reasoning_content", turn.start):
            return False
        said = first_said(turn.traced, turn.message, turn.start)
        return bool(turn.traced.text[turn.start : min(said, turn.end.stop_start)].strip())

    def _switched(self, message: int, turn: ExactTurn | None) -> tuple[ExactTurn | None, MaskError | None]:
        """The turn under the keyword argument that makes it exact, or that leaves the model least to emit.

        A prompt that supplies a scaffold which the turn did not write (an empty block of reasoning) leaves the
        model less to emit; a switch that changes something else leaves as much, and is not taken. The error is that
        of the first switch under which the prompt fits and something else is wrong.
        """
        best, refused = turn, None
        for request in self._switched_requests():
            found = self._try_switch(message, request)
            if isinstance(found, MaskError):
                refused = refused or found
            elif found is not None and (best is None or found.size < best.size):
                best = found
        return (None if best is None else self._behind_longest_prompt(best)), refused

    def _behind_longest_prompt(self, turn: ExactTurn) -> ExactTurn:
        """The same text behind the longest prompt of a server that it begins with: a scaffold there is not trained."""
        limit = first_said(turn.traced, turn.message, turn.start)
        for request in (self.request, *self._switched_requests()):
            try:
                prompt = self._text(turn.message, request, prompt=True)
            except TemplateError:
                continue
            if turn.start < len(prompt) <= limit and turn.exact_text.startswith(prompt):
                turn = replace(turn, request=request, start=len(prompt), kind="switched")
        return turn

    def _switched_requests(self) -> list[Request]:
        given = self.request.kwargs or {}
        return [self.request.with_kwargs({name: v}) for name, v in self.template.switches if name not in given]

    def _try_switch(self, message: int, request: Request) -> ExactTurn | MaskError | None:
        try:
            return self._tried(message, request, "switched")
        except TemplateError:
            return None

    def _spliced(self, message: int, request: Request) -> ExactTurn:
        """The prompt as it is, and the completion cut out of a render that shows another prompt."""
        before = self.messages[:message]
        prompt = self.template.trace(before, request, prompt=True)
        bare = self.template.render(before, request, prompt=False)
        opening = prompt.text[len(bare) :] if prompt.text.startswith(bare) else unstamped_tail(prompt)
        traced = self.template.trace(self.messages[: message + 1], request, prompt=False)
        begin = turn_start(traced, message)
        # Without a generation prompt of its own, the literal that ends the prompt must stand before the turn.
        anchor = opening or trailing_literal(prompt)
        shift = len(opening)
        if begin is None or not anchor or not traced.text[: begin + shift].endswith(anchor):
            return self._contradicted(message, request, (prompt, traced), opening)
        turn = self._ended(message, request, "spliced", (traced, begin + shift))
        return behind_prompt(turn, prompt)

    def _contradicted(
        self, message: int, request: Request, texts: tuple[TracedText, TracedText], opening: str
    ) -> ExactTurn:
        """What the template shows of the turn, behind a prompt that it does not continue, for those who ask for that.

        The completion begins where the turn's text and the generation prompt part.
        """
        prompt, traced = texts
        begin = turn_start(traced, message)
        if CONTRADICTED not in self.allow or begin is None:
            what = f"the template opens the turn with {prompt.text[-40:]!r} and then renders it without that"
            raise mask_error(message, CONTRADICTED, what)
        written = traced.text[begin : first_said(traced, message, begin)]
        shared = next((i for i, (a, b) in enumerate(zip(opening, written, strict=False)) if a != b), None)
        shared = min(len(opening), len(written)) if shared is None else shared
        turn = self._ended(message, request, "contradicted", (traced, begin + shared))
        return replace(behind_prompt(turn, prompt), kind="contradicted")


_TAIL: Final = 20  # characters, of the last field at most, by which a text is known again in a longer one


def _opened_by(probe: TracedText, traced: TracedText, follower: int, stop_tokens: Sequence[str]) -> str:
    """White space and the stop token with which `probe` goes on after the text of `traced`; empty where it does not."""
    border = len(traced.text) if probe.text.startswith(traced.text) else turn_start(probe, follower)
    own = [at.start for at in traced.placed if is_supervised(traced, at.run.source, follower - 1)]
    tail = traced.text[max(len(traced.text) - _TAIL, max(own, default=0)) :]
    if border is None or not probe.text[:border].endswith(tail):
        return ""
    end = opening_stop(probe, border, stop_tokens)
    return "" if end is None else probe.text[border : end.stop]

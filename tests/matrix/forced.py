"""When a template forces a refusal: shown on transformers' own text, by words, without any trace.

A refusal that is not forced is a miss. The rules, one function each:

- `template-raised`: transformers raises on the prompt, or on every render that shows the turn.
- `ill-posed`: the message before is the assistant's, or there is none.
- `contradicted`: under no switch does a render that ends with the turn begin with its prompt, or show what the prompt
  writes behind the last message's own words.
- `no-terminator`: no stop token stands behind the turn, nor opens the next one; or nothing of the turn is shown.
- `field-lost`, `field-repeated`, `foreign-text`: words that the turn says are missing behind the prompt, are there too
  often, or words of others are there.
- `tools-lost`: the prompt names no tool.
- any other code: a stop token that nobody typed stands before the turn's last word.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from tests.matrix.reference import Server
from tests.matrix.suite import Case, Json
from tests.matrix.words import (
    common_length,
    first_word,
    foreign_words,
    last_word,
    pieces_of,
    repeated,
    unsaid,
    words_of,
)
from tests.templates.conversations import user


@dataclass(frozen=True, slots=True)
class Turn:
    """One trained turn and the server that it is judged by."""

    server: Server
    case: Case
    messages: Sequence[Json]
    message: int
    switches: Sequence[Mapping[str, Json]]
    stops: Sequence[str]

    def prompt(self, kwargs: Mapping[str, Json]) -> str | None:
        """The server's prompt."""
        return self.server.render(self.messages[: self.message], self.case, kwargs, prompt=True)

    def ended(self, kwargs: Mapping[str, Json]) -> str | None:
        """The render that ends with the turn."""
        return self.server.render(self.messages[: self.message + 1], self.case, kwargs, prompt=False)

    @property
    def free_switches(self) -> list[Mapping[str, Json]]:
        """The switches that the row itself does not set."""
        return [kwargs for kwargs in self.switches if not kwargs.keys() & self.case.kwargs.keys()]

    @property
    def own(self) -> Json:
        """The turn's message."""
        return self.messages[self.message]

    @property
    def asked(self) -> str:
        """Where the message before ends: its last word, or its whole text where the template has that word, too."""
        before = self.messages[self.message - 1]
        word = last_word(before)
        content = before.get("content")
        in_template = word in self.server.text and isinstance(content, str)
        return (str(content).strip() if in_template else word) or "\0"

    def bare(self, kwargs: Mapping[str, Json]) -> str:
        """The messages before the turn, without a generation prompt."""
        return self.server.render(self.messages[: self.message], self.case, kwargs, prompt=False) or ""

    def opening(self, kwargs: Mapping[str, Json]) -> str:
        """The generation prompt: what the prompt has more than the same messages without it."""
        prompt, bare = self.prompt(kwargs) or "", self.bare(kwargs)
        if prompt.startswith(bare):
            return prompt[len(bare) :]
        behind, end = prompt.rpartition(self.asked)[2], bare.rpartition(self.asked)[2]
        return behind.removeprefix(end) if behind.startswith(end) else ""

    def tail(self, kwargs: Mapping[str, Json]) -> str:
        """What the prompt writes behind the last words of the message before, or else the generation prompt."""
        prompt, opening = self.prompt(kwargs) or "", self.opening(kwargs)
        _, word, behind = prompt.removesuffix(opening).rpartition(self.asked)
        return behind + opening if word else opening

    def shown(self, kwargs: Mapping[str, Json]) -> str | None:
        """What stands behind the prompt, with the prompt's tail before it; None where the prompt is contradicted."""
        prompt, ended, tail = self.prompt(kwargs), self.ended(kwargs), self.tail(kwargs)
        if prompt is None or ended is None:
            return None
        if ended.startswith(prompt):
            return tail + ended[len(prompt) :]
        word = self.asked
        at = ended.rfind(word + tail) if tail else -1
        # A match inside what both have in common is a prompt that somebody typed.
        is_own = at >= 0 and at + len(word + tail) > common_length(prompt, ended)
        return ended[at + len(word) :] if is_own else self._behind_opening(ended, kwargs)

    def _behind_opening(self, ended: str, kwargs: Mapping[str, Json]) -> str | None:
        """What stands from the generation prompt on, if that comes before anything that the turn says."""
        opening = self.opening(kwargs)
        start = common_length(self.bare(kwargs), ended)
        at = ended.find(opening, start) if opening else -1
        said = ended.find(first_word(self.own), start) if first_word(self.own) else -1
        return ended[at:] if 0 <= at <= (said if said >= 0 else at) else None

    def all_shown(self) -> Iterator[str]:
        """What stands behind the prompt under each switch that contradicts nothing."""
        return (shown for kwargs in self.free_switches if (shown := self.shown(kwargs)) is not None)


def is_forced(turn: Turn, code: str) -> bool:
    """Whether the template forces the refusal of a turn with this code."""
    return _RULES[code](turn) if code in _RULES else _stops_early(turn)


def _raises(turn: Turn) -> bool:
    full = turn.server.render(turn.messages, turn.case, {}, prompt=False)
    return turn.prompt({}) is None or (turn.ended({}) is None and full is None)


def _ill_posed(turn: Turn) -> bool:
    return turn.message == 0 or turn.messages[turn.message - 1]["role"] == "assistant"


def _contradicted(turn: Turn) -> bool:
    return not list(turn.all_shown())


def _unterminated(turn: Turn) -> bool:
    follower = user("zfollower")
    more = turn.server.render([*turn.messages[: turn.message + 1], follower], turn.case, {}, prompt=False) or ""
    shown = [*turn.all_shown(), more.partition("zfollower")[0]]
    behind = [text.rpartition(last_word(turn.own) or "\0")[2] for text in shown]
    silent = all(len(unsaid(turn.own, text)) == len(list(pieces_of(turn.own))) for text in shown)
    return silent or not any(stop in text for text in behind for stop in turn.stops)


def _stops_early(turn: Turn) -> bool:
    """A stop token that nobody typed stands before the turn's last word: a server would stop there."""
    return all(_has_early_stop(turn, shown.removeprefix(turn.tail({}))) for shown in turn.all_shown())


def _has_early_stop(turn: Turn, shown: str) -> bool:
    pieces = [piece for _, piece in pieces_of(turn.own)]
    last = max((shown.rfind(word) for piece in pieces for word in words_of(piece)), default=-1)
    return any(shown[: max(last, 0)].count(stop) > sum(piece.count(stop) for piece in pieces) for stop in turn.stops)


def _lost(turn: Turn) -> bool:
    return all(unsaid(turn.own, shown) for shown in turn.all_shown()) or all(
        _is_swallowed(turn, kwargs) for kwargs in turn.free_switches
    )


def _is_swallowed(turn: Turn, kwargs: Mapping[str, Json]) -> bool:
    """Whether an answer that is a delimiter of the template (`</think>`) is there no oftener than with another one."""
    piece = str(turn.own.get("content", "")).strip()
    if not piece or piece not in turn.server.text:
        return False
    before = turn.messages[: turn.message]
    other = turn.server.render([*before, {**turn.own, "content": "zother"}], turn.case, kwargs, prompt=False) or ""
    return (turn.ended(kwargs) or "").count(piece) <= other.count(piece)


def _repeated(turn: Turn) -> bool:
    return all(repeated(turn.own, shown) for shown in turn.all_shown())


def _foreign(turn: Turn) -> bool:
    foreign = foreign_words(turn.messages, turn.message, turn.server.text)
    return all(any(word in shown for word in foreign) for shown in turn.all_shown())


def _tools_hidden(turn: Turn) -> bool:
    names = [tool["function"]["name"] for tool in turn.case.tools or ()]
    said = [word for message in turn.messages for _, piece in pieces_of(message) for word in words_of(piece)]
    prompt = turn.prompt({}) or ""
    return all(prompt.count(name) <= said.count(name) for name in names)


_RULES: Mapping[str, Callable[[Turn], bool]] = {
    "template-raised": _raises,
    "ill-posed": _ill_posed,
    "contradicted": _contradicted,
    "no-terminator": _unterminated,
    "field-lost": _lost,
    "field-repeated": _repeated,
    "foreign-text": _foreign,
    "tools-lost": _tools_hidden,
}

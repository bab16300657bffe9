"""One cell of the matrix: a template and a conversation, judged on transformers' text alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from sftprep.data import Conversation, RowAddress, Sample, TrainedTurn
from sftprep.errors import MaskError, TemplateError
from sftprep.stages.render import RenderedConversation, render
from sftprep.templates.adapt import adapt_messages, probe_form
from sftprep.templates.policy import ControlTokens, RenderPolicy
from sftprep.templates.template import ChatTemplate, Request
from tests.matrix.forced import Turn, is_forced
from tests.matrix.reference import NOW, SPECIAL, Server, stop_tokens
from tests.matrix.suite import Case, Json
from tests.matrix.words import foreign_words, pieces_of, unsaid

EXACT: Final = {"packed": "p", "rewritten": "r", "switched": "w", "spliced": "s"}
"""Letters of turns that are exact; of the classes in a cell the last of these is shown."""
REFUSED: Final = {
    "contradicted": "c",
    "ill-posed": "i",
    "field-lost": "l",
    "no-terminator": "n",
    "template-raised": "-",
}
"""Letters of refusals; any other code is `o`. In capitals (`R` for `-` and `o`) the template does not force it."""
LEGEND: Final = (
    "p packed · r rewritten · w switched · s spliced · l a field that the template drops (waived, else exact) · "
    "c contradicted · i ill-posed · n no-terminator · - template raises · o other refusal that is forced · "
    "capitals, R: refused without need · X wrong"
)


@dataclass(frozen=True, slots=True)
class Cell:
    """The verdict on one cell: its letter, the turns that are exact, and every miss with its reason."""

    letter: str
    exact: int
    misses: Sequence[str] = ()


@dataclass(slots=True)
class Judge:
    """Judges the conversations of one template."""

    server: Server
    stops: Sequence[str] = field(init=False)
    template: ChatTemplate = field(init=False)
    switches: Sequence[Mapping[str, Json]] = field(init=False)

    def __post_init__(self) -> None:
        self.stops = stop_tokens(self.server)
        self.template = ChatTemplate(self.server.text, special_tokens=SPECIAL, stop_tokens=self.stops, now=NOW)
        effort = [{"reasoning_effort": "high"}] if "reasoning_effort" in self.server.text else []
        self.switches = [{}, *({name: value} for name, value in self.template.switches), *effort]

    def cell(self, case: Case) -> Cell:
        """The verdict on a conversation; where the template drops a field, that is waived and the rest is judged."""
        messages = adapt_messages(case.messages, probe_form(self.template))
        wrong = list(self._differing(messages, case))
        if wrong:
            return Cell("X", 0, wrong)
        turns = [Turn(self.server, case, messages, k, self.switches, self.stops) for k in case.trained]
        tried = self._attempt(case, frozenset())
        if isinstance(tried, RenderedConversation):
            return self._verdict(turns, tried, frozenset())
        unforced = [miss for turn in turns for miss in self._needless_loss(turn)]
        allow = frozenset({"field-lost"})
        waived = self._verdict(turns, self._attempt(case, allow), allow)
        letter = "l" if waived.letter in EXACT.values() else waived.letter
        return Cell("L" if unforced else letter, waived.exact - len(unforced), [*unforced, *waived.misses])

    def _differing(self, messages: Sequence[Json], case: Case) -> Iterator[str]:
        """The renders that are not transformers' to the character, or that only one of the two refuses."""
        request = Request(tools=case.tools, kwargs=case.kwargs)
        for size, prompt in [(len(messages), False), *((k, True) for k in case.trained)]:
            expected = self.server.render(messages[:size], case, {}, prompt=prompt)
            try:
                actual = self.template.trace(messages[:size], request, prompt=prompt).text
            except TemplateError as error:
                if expected is not None and error.code != "trace-differs":
                    yield f"render of {size}: {error.code}"
                continue
            if actual != expected:
                yield f"render of {size}: text differs"

    def _attempt(self, case: Case, allow: frozenset[str], only: int | None = None) -> RenderedConversation | MaskError:
        """What sftprep makes of the conversation, or of one turn of it."""
        weights = [case.weights.get(k, 1.0) if only in (None, k) else 0.0 for k in range(len(case.messages))]
        conversation = Conversation(RowAddress("f", 1), case.messages, weights, case.tools, case.kwargs)
        # No tokenizer here: what looks like a control token is text, in an answer too.
        policy = RenderPolicy(control_tokens=ControlTokens.SPLIT, allow=allow)
        try:
            return render(conversation, template=self.template, policy=policy)
        except MaskError as error:
            return error

    def _needless_loss(self, turn: Turn) -> Iterator[str]:
        tried = self._attempt(turn.case, frozenset(), turn.message)
        if isinstance(tried, MaskError) and tried.code == "field-lost" and not is_forced(turn, tried.code):
            yield f"turn {turn.message}: field-lost"

    def _verdict(self, turns: Sequence[Turn], tried: RenderedConversation | MaskError, allow: frozenset[str]) -> Cell:
        if isinstance(tried, RenderedConversation):
            wrong = list(self._wrong(turns, tried.samples, allow))
            letter = [letter for kind, letter in EXACT.items() if kind in tried.classes][-1]
            return Cell("X", 0, wrong) if wrong else Cell(letter, len(turns))
        letters: list[str] = []
        misses: list[str] = []
        for turn in turns:
            alone = self._attempt(turn.case, allow, turn.message)
            if isinstance(alone, RenderedConversation):
                misses += self._wrong([turn], alone.samples, allow)
                continue
            forced = is_forced(turn, alone.code)
            letters.append(REFUSED.get(alone.code, "o") if forced else REFUSED.get(alone.code, "r").upper())
            misses += [] if forced else [f"turn {turn.message}: {alone.code}"]
        if not letters and not misses:
            misses = [f"conversation: {tried.code}, though each of its turns is exact"]
        letter = "X" if any("wrong" in miss for miss in misses) else max(letters, default="R", key=str.isupper)
        return Cell(letter.replace("-", "R") if misses and letter == "-" else letter, len(turns) - len(letters), misses)

    def _wrong(self, turns: Sequence[Turn], samples: Sequence[Sample], allow: frozenset[str]) -> Iterator[str]:
        """What is wrong with accepted turns: each is there once, behind the server's prompt, whole and alone."""
        found = sorted(turn.message for sample in samples for turn in sample.turns)
        if found != [turn.message for turn in turns]:
            yield f"wrong: trained {found}"
        by_message = {turn.message: turn for turn in turns}
        for sample in samples:
            for trained in sample.turns:
                if trained.message in by_message:
                    yield from self._wrong_turn(by_message[trained.message], sample.text, trained, bool(allow))

    def _wrong_turn(self, turn: Turn, text: str, trained: TrainedTurn, waived: bool) -> Iterator[str]:
        prompt, completion = text[: trained.start], text[trained.start : trained.stop]
        served = [kwargs for kwargs in turn.free_switches if turn.prompt(kwargs) == prompt]
        stop = max((stop for stop in self.stops if completion.endswith(stop)), key=len, default="")
        body = completion.removesuffix(stop)
        place = f"turn {turn.message}: wrong:"
        if not served:
            yield f"{place} not a prompt of the server"
        if not stop:
            yield f"{place} the completion ends in no stop token"
        rendered = any(_is_rendered(turn, kwargs, (prompt, body, stop)) for kwargs in served)
        # The whole text may be that of another switch, which begins with this server's prompt.
        rendered |= any((turn.ended(kwargs) or "").startswith(prompt + completion) for kwargs in turn.free_switches)
        if served and not rendered:
            yield f"{place} the template never writes this completion"
        if _has_scaffold(turn, prompt, completion):
            yield f"{place} trains a scaffold that a server supplies"
        tail = next((turn.tail(kwargs) for kwargs in served), "")
        lost = unsaid(turn.own, tail + completion)
        if lost and not (waived and is_forced(turn, "field-lost")):
            yield f"{place} {lost[0]} is lost in silence"
        yield from (f"{place} {problem}" for problem in self._trespasses(turn, body))

    def _trespasses(self, turn: Turn, body: str) -> Iterator[str]:
        foreign = [w for w in foreign_words(turn.messages, turn.message, self.server.text) if w in body]
        if foreign:
            yield f"holds words of others: {sorted(foreign)[0]}"
        typed = any(stop in piece for _, piece in pieces_of(turn.own) for stop in self.stops)
        if not typed and any(stop in body for stop in self.stops):
            yield "goes on behind a stop token"


def _has_scaffold(turn: Turn, prompt: str, completion: str) -> bool:
    """Whether another switch's prompt holds what a turn without reasoning begins with: an empty block (E3)."""
    if turn.own.get("reasoning_content") or "think" in str(turn.own.get("content")):
        return False
    prompts = [turn.prompt(kwargs) or "" for kwargs in turn.free_switches]
    return any(len(other) > len(prompt) and (prompt + completion).startswith(other) for other in prompts)


def _is_rendered(turn: Turn, kwargs: Mapping[str, Json], parts: tuple[str, str, str]) -> bool:
    """Whether transformers writes the completion behind the prompt, or behind the prompt's tail where it is moved."""
    prompt, body, stop = parts
    ended = turn.ended(kwargs)
    if ended is None:
        return False
    if not ended.startswith(prompt):
        return turn.tail(kwargs) + body in ended or turn.opening(kwargs) + body in ended
    exact = prompt + body
    return ended.startswith(exact + stop) or (ended.startswith(exact.rstrip()) and not ended[len(exact) :].strip())

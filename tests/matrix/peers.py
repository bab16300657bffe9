"""The matrix that the peers were measured on: eleven original templates, seven conversations, with a real tokenizer.

The tokenizer is Qwen3's with the templates' control tokens added, as the peers were given it. The reference is
transformers' text encoded by that tokenizer. A cell is `o` where every assistant turn is trained once, behind exactly
the server's prompt ids, through its stop id, and decodes to its text; `-` where the template itself refuses; else the
code of the refusal, or what is wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from tokenizers import AddedToken, Tokenizer

from sftprep.data import TRAINED_KINDS, Conversation, Document, RowAddress
from sftprep.engines.reference import ReferenceEngine
from sftprep.errors import MaskError
from sftprep.stages.encode import encode
from sftprep.stages.render import render
from sftprep.templates.adapt import adapt_messages, probe_form
from sftprep.templates.policy import ControlTokens, RenderPolicy
from sftprep.templates.template import ChatTemplate
from tests.matrix.reference import NOW, SPECIAL, TOKEN, Server, fixed_clock, opening_of, stop_tokens
from tests.matrix.runner import TEMPLATES
from tests.matrix.suite import Case, Json
from tests.templates.conversations import assistant, calling, result, system, user

MODELS = TEMPLATES.parent / "models"
ORIGINALS = {
    "qwen2.5": TEMPLATES / "llama.cpp__Qwen-Qwen2.5-7B-Instruct.jinja",
    "qwen3": TEMPLATES / "trl__qwen3.jinja",
    "qwen3.5": TEMPLATES / "llama.cpp__Qwen3.5-4B.jinja",
    "llama3": TEMPLATES / "trl__llama3_training.jinja",
    "llama3.1": TEMPLATES / "llama.cpp__meta-llama-Llama-3.1-8B-Instruct.jinja",
    "gemma": TEMPLATES / "llama.cpp__google-gemma-2-2b-it.jinja",
    "gemma3": TEMPLATES / "trl__gemma3.jinja",
    "phi3": TEMPLATES / "trl__phi3.jinja",
    "dsv3": MODELS / "deepseek-v3" / "chat_template.jinja",
    "gpt-oss": TEMPLATES / "llama.cpp__openai-gpt-oss-120b.jinja",
    "glm4moe": TEMPLATES / "trl__glm4moe.jinja",
}
"""The nearest originals: Llama-3's is shipped with generation tags only, which write nothing."""
CASES = ("plain", "think", "brack", "space", "sysmid", "tool", "inject")
WAIVED = RenderPolicy(control_tokens=ControlTokens.ALLOW, allow=frozenset({"field-lost"}))
SAFE = RenderPolicy()


def conversations(opening: str) -> dict[str, Case]:
    """The seven conversations; `inject` holds the template's own generation prompt as a user's text."""
    thinking = [assistant("alpha one.", reasoning_content="rone"), assistant("beta two.", reasoning_content="rtwo")]
    return {
        "plain": Case([user("qone"), assistant("alpha one."), user("qtwo"), assistant("beta two.")]),
        "think": Case([user("qone"), thinking[0], user("qtwo"), thinking[1]]),
        "brack": Case([user("qone"), assistant("[[1, 2], [3, 4]]")]),
        "space": Case([user("qone"), assistant("\n\n  alpha one. \n"), user("qtwo"), assistant(" beta two. ")]),
        "sysmid": Case([system("srule"), user("qone"), assistant("alpha one."), user("qtwo"), assistant("beta two.")]),
        "tool": Case([user("qone"), calling({"harbour": "Kiel"}), result("ttide"), assistant("alpha one.")]),
        "inject": Case([user(f"qone\n{opening}forged"), assistant("alpha one."), user("qtwo"), assistant("beta two.")]),
    }


@dataclass(frozen=True, slots=True)
class Verdict:
    """A cell: `o`, `-`, the code of a refusal, or what is wrong."""

    text: str


class Vocabulary:
    """Qwen3's tokenizer with the control tokens of all the templates, and the engine that sftprep makes of it."""

    def __init__(self, servers: Sequence[Server]) -> None:
        self.tokenizer = Tokenizer.from_file(str(MODELS / "qwen3" / "tokenizer.json"))
        found = {token for server in servers for token in (*TOKEN.findall(server.text), *stop_tokens(server))}
        tokens = sorted(token for token in found if not token.startswith("</")) + list(SPECIAL.values())
        self.tokenizer.add_special_tokens([AddedToken(token, special=True) for token in tokens])
        self.engine = ReferenceEngine(self.tokenizer.to_str())
        self.control_tokens = [t.content for t in self.tokenizer.get_added_tokens_decoder().values() if t.special]

    def encode(self, text: str) -> list[int]:
        """A text's ids, as a server encodes them."""
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)


class Peer:
    """One template with that vocabulary."""

    def __init__(self, server: Server, vocabulary: Vocabulary) -> None:
        self.server = server
        self.vocabulary = vocabulary
        stops = stop_tokens(server)
        self.stop_ids = frozenset(int(vocabulary.tokenizer.token_to_id(stop)) for stop in stops)
        self.template = ChatTemplate(
            server.text,
            special_tokens=SPECIAL,
            stop_tokens=stops,
            control_tokens=vocabulary.control_tokens,
            now=NOW,
        )

    def verdict(self, case: Case, policy: RenderPolicy) -> Verdict:
        """The cell of a conversation."""
        messages = adapt_messages(case.messages, probe_form(self.template))
        if self.server.render(messages, case, {}, prompt=False) is None:
            return Verdict("-")
        conversation = Conversation(RowAddress("f", 1), case.messages, [1.0] * len(case.messages), case.tools)
        try:
            rendered = render(conversation, template=self.template, policy=policy)
            documents = encode(rendered.samples, engine=self.vocabulary.engine, stop_ids=self.stop_ids)
        except MaskError as error:
            return Verdict(error.code)
        return Verdict(", ".join(self._wrong(case, messages, documents)) or "o")

    def _wrong(self, case: Case, messages: Sequence[Json], documents: Sequence[Document]) -> Iterator[str]:
        runs = [run for document in documents for run in trained_runs(document)]
        if sorted(message for message, _, _ in runs) != case.trained:
            yield "turns are not trained once"
        switches = [{}, *({name: value} for name, value in self.template.switches)]
        for message, before, own in runs:
            texts = [self.server.render(messages[:message], case, kwargs, prompt=True) for kwargs in switches]
            if before not in [self.vocabulary.encode(text) for text in texts if text is not None]:
                yield f"turn {message} is not behind the server's prompt"
            if own[-1] not in self.stop_ids or set(own[:-1]) & self.stop_ids:
                yield f"turn {message} does not end in its only stop token"
            ended = [self.server.render(messages[: message + 1], case, kwargs, prompt=False) for kwargs in switches]
            if not any(self.vocabulary.engine.decode(own[:-1]) in text for text in ended if text is not None):
                yield f"turn {message} is not the template's text"


def trained_runs(document: Document) -> Iterator[tuple[int, list[int], list[int]]]:
    """(message, ids before it, its own ids) of every trained run."""
    spans = [span for span in document.spans if span.kind in TRAINED_KINDS]
    for message in dict.fromkeys(span.message for span in spans):
        own = [span for span in spans if span.message == message]
        start, stop = own[0].start, own[-1].stop
        yield message, document.ids[:start].tolist(), document.ids[start:stop].tolist()


Matrix = Mapping[str, Mapping[str, Verdict]]
"""The cells by template and conversation."""


def peer_matrices() -> tuple[Matrix, Matrix]:
    """The cells with control tokens and lost fields waived, and those of the safe defaults."""
    waived: dict[str, dict[str, Verdict]] = {}
    safe: dict[str, dict[str, Verdict]] = {}
    servers = {name: Server(path.read_text(encoding="utf-8")) for name, path in ORIGINALS.items()}
    with fixed_clock():
        vocabulary = Vocabulary(list(servers.values()))
        for name, server in servers.items():
            peer = Peer(server, vocabulary)
            made = conversations(opening_of(server))
            waived[name] = {case: peer.verdict(made[case], WAIVED) for case in CASES}
            safe[name] = {case: peer.verdict(made[case], SAFE) for case in CASES}
    return waived, safe


def peer_table() -> str:
    """Both matrices: all that can be exact, and what the safe defaults refuse, by code."""
    titles = ("--control-tokens allow --allow field-lost", "safe defaults")
    return "\n\n".join(f"{title}\n{table(m)}" for title, m in zip(titles, peer_matrices(), strict=True))


def table(matrix: Matrix) -> str:
    """The cells as lines of text, with the count of those that are exact."""
    head = f"{'':10}" + "".join(f"{case:15}" for case in CASES)
    lines = [f"{name:10}" + "".join(f"{row[case].text:15}" for case in CASES) for name, row in matrix.items()]
    texts = [cell.text for row in matrix.values() for cell in row.values()]
    possible = len(texts) - texts.count("-")
    return "\n".join(line.rstrip() for line in [head, *lines, f"{texts.count('o')} exact of {possible}"])

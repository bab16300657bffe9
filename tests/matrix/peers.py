"""The matrix that the peers were measured on: eleven original templates, seven conversations, with a real tokenizer.

The tokenizer is Qwen3's with the control tokens of each template added, as the peers were given it. The reference is
transformers' text encoded by that tokenizer. A cell is `o` where every assistant turn is trained once, behind exactly
the server's prompt ids, through its stop id, and decodes to its text; `-` where the template itself refuses; else the
code of the refusal, or what is wrong.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken, Tokenizer

from sftprep.data import TRAINED_KINDS, Conversation, Document, RowAddress
from sftprep.engines.load import build_model
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


@functools.lru_cache(maxsize=1)
def base_tokenizer() -> str:
    """Qwen3's tokenizer.json."""
    return (MODELS / "qwen3" / "tokenizer.json").read_text(encoding="utf-8")


@dataclass(frozen=True, slots=True)
class Verdict:
    """A cell, and where it was refused."""

    text: str
    place: str = ""


class Peer:
    """One template with the tokenizer made for it."""

    def __init__(self, path: Path) -> None:
        self.server = Server(path.read_text(encoding="utf-8"))
        stops = stop_tokens(self.server)
        self.tokenizer = Tokenizer.from_str(base_tokenizer())
        tokens = {*TOKEN.findall(self.server.text), *SPECIAL.values(), *stops}
        special = sorted(token for token in tokens if "/" not in token[1:3] or token in SPECIAL.values())
        self.tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
        files = {
            "tokenizer.json": self.tokenizer.to_str().encode(),
            "tokenizer_config.json": json.dumps(SPECIAL).encode(),
            "generation_config.json": json.dumps({"eos_token_id": [self._id(stop) for stop in stops]}).encode(),
            "chat_template.jinja": self.server.text.encode(),
        }
        self.model = build_model(path.stem, files)
        self.engine = ReferenceEngine(self.model.tokenizer_json)
        self.template = ChatTemplate(
            self.server.text,
            special_tokens=self.model.special_tokens,
            stop_tokens=self.model.stop_tokens,
            control_tokens=self.model.control_tokens,
            now=NOW,
        )

    def _id(self, token: str) -> int:
        return int(self.tokenizer.token_to_id(token))

    def encoded(self, text: str) -> list[int]:
        """A text's ids, as a server encodes them."""
        return list(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def verdict(self, case: Case, policy: RenderPolicy) -> Verdict:
        """The cell of a conversation."""
        messages = adapt_messages(case.messages, probe_form(self.template))
        if self.server.render(messages, case, {}, prompt=False) is None:
            return Verdict("-")
        conversation = Conversation(RowAddress("f", 1), case.messages, [1.0] * len(case.messages), case.tools)
        try:
            rendered = render(conversation, template=self.template, policy=policy)
            documents = encode(rendered.samples, engine=self.engine, stop_ids=frozenset(self.model.stop_ids))
        except MaskError as error:
            return Verdict(error.code, error.place)
        return Verdict(", ".join(self._wrong(case, messages, documents)) or "o")

    def _wrong(self, case: Case, messages: Sequence[Json], documents: Sequence[Document]) -> Iterator[str]:
        runs = [run for document in documents for run in trained_runs(document)]
        if sorted(message for message, _, _ in runs) != case.trained:
            yield "turns are not trained once"
        switches = [{}, *({name: value} for name, value in self.template.switches)]
        for message, before, own in runs:
            texts = [self.server.render(messages[:message], case, kwargs, prompt=True) for kwargs in switches]
            if before not in [self.encoded(text) for text in texts if text is not None]:
                yield f"turn {message} is not behind the server's prompt"
            if own[-1] not in self.model.stop_ids or set(own[:-1]) & set(self.model.stop_ids):
                yield f"turn {message} does not end in its only stop token"
            ended = [self.server.render(messages[: message + 1], case, kwargs, prompt=False) for kwargs in switches]
            if not any(self.engine.decode(own[:-1]) in text for text in ended if text is not None):
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
    with fixed_clock():
        for name, path in ORIGINALS.items():
            # One tokenizer at a time: each takes a second to build and 100 MB.
            peer = Peer(path)
            made = conversations(opening_of(peer.server))
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

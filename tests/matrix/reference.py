"""What a server does, by transformers alone: nothing here knows how sftprep finds a mask."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import jinja2
import transformers.utils.chat_template_utils as hf

from tests.matrix.suite import Case, Json
from tests.templates.conversations import TOOLS, assistant, calling, result, user

NOW = datetime(2026, 1, 2, 3, 4, 5)
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
TOKEN = re.compile(r"<[|｜][^<>]*?[|｜]?>|<[a-z_]+\|>|</?\w[\w:]*>|\[/?[A-Z_]+\]|\[\|\w+\|\]|\[[a-z]~\[|\][~!][a-z]\]")
"""A text that looks like a control token."""
OPENS = re.compile(r"^[^/]*(start|begin|bom|user|assistant|bot|system)", re.IGNORECASE)
"""A token whose name says that it opens a turn."""


class FixedClock(datetime):
    """A clock that shows `NOW`."""

    @classmethod
    def now(cls, tz: Any = None) -> datetime:
        return NOW


@contextmanager
def fixed_clock() -> Iterator[None]:
    """transformers' `strftime_now` shows `NOW` inside."""
    kept = hf.datetime
    hf.datetime = FixedClock
    try:
        yield
    finally:
        hf.datetime = kept


class Server:
    """A server with one template: renders as transformers does, each text once."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._rendered: dict[str, str | None] = {}

    def render(self, messages: Sequence[Json], case: Case, kwargs: Mapping[str, Json], *, prompt: bool) -> str | None:
        """The text; None where the template refuses the messages."""
        key = json.dumps([messages, case.tools, {**case.kwargs, **kwargs}, prompt])
        if key not in self._rendered:
            self._rendered[key] = self._render(messages, case.tools, {**case.kwargs, **kwargs}, prompt)
        return self._rendered[key]

    def _render(self, messages: Sequence[Json], tools: Any, kwargs: Mapping[str, Json], prompt: bool) -> str | None:
        given = {**SPECIAL, **kwargs}
        try:
            normal = hf._normalize_chat_messages(list(messages))
            texts, _ = hf.render_jinja_template(
                [normal], tools=tools, chat_template=self.text, add_generation_prompt=prompt, **given
            )
        except (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError, RecursionError):
            return None
        return str(texts[0])


def stop_tokens(server: Server) -> list[str]:
    """The stop set that a model with this template has: no model files lie beside the corpus' templates.

    The rule: the end-of-sequence token; the last of the tokens that stand right behind a plain answer, before one
    that opens another turn; where there is none, the one that opens the user's turn (GLM). Where no stop token stands
    behind a tool call: the token that ends the text, or else the one that opens the tool's turn.
    """
    found = [SPECIAL["eos_token"]]
    part: Json = [{"type": "text", "text": "aone"}]
    for question, answer in ("qone", "aone"), ([{**part[0], "text": "qone"}], part):
        case = Case([user(question), assistant(answer)])
        for behind in (_behind(server, case, "aone"), _behind(server, case, "aone", user("qtwo"))):
            run = _adjacent(behind)
            closing = list(itertools.takewhile(lambda token: not OPENS.search(token), run))
            found += closing[-1:] or run[:1]
            if len(found) > 1:
                return [*dict.fromkeys(found), *_call_stop(server, found)]
    return found


def _call_stop(server: Server, found: Sequence[str]) -> list[str]:
    case = Case([user("qone"), calling({"harbour": "Kiel"})], TOOLS)
    last = _behind(server, case, "Kiel").rstrip()
    if not last or any(stop in last for stop in found):
        return []
    ending = [token.group() for token in TOKEN.finditer(last) if token.end() == len(last)]
    if ending and not ending[0].startswith("</"):
        return ending
    opened = re.sub(r"^[\s\"'}\])]*(</[^>]*>\s*)*", "", _behind(server, case, "Kiel", result("qtwo")))
    return _adjacent(opened)[:1]


def _adjacent(text: str) -> list[str]:
    """The tokens at the very front of a text, one right behind the other; what closes a list may stand before."""
    text = text.lstrip("'\"}] \n")
    tokens: list[str] = []
    while (found := TOKEN.match(text)) is not None:
        tokens.append(found.group())
        text = text[found.end() :]
    return tokens


def _behind(server: Server, case: Case, word: str, follower: Json | None = None) -> str:
    """What the template writes behind a word, at the end of the text or before the follower's own words."""
    messages = case.messages if follower is None else [*case.messages, follower]
    text = server.render(messages, case, {}, prompt=False) or ""
    behind = text.rpartition(word)[2] if word in text else ""
    return behind if follower is None else behind.partition("qtwo")[0] if "qtwo" in behind else ""


def opening_of(server: Server) -> str:
    """The generation prompt behind a plain question: what the template writes more, or else all behind the question."""
    case = Case([user("qone")])
    bare = server.render(case.messages, case, {}, prompt=False)
    full = server.render(case.messages, case, {}, prompt=True)
    if full is None:
        return ""
    if bare is not None and full.startswith(bare) and full != bare:
        return full[len(bare) :]
    return full.rpartition("qone")[2]

"""A judge that knows nothing of how masks are made: shards and their rows in, transformers' own answer beside them.

For every trained run of a shard set: the ids before it are those that `apply_chat_template` gives for the messages
before the turn, and its own ids are those that follow in the template's text for the messages through the turn.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

import zstandard
from transformers import AutoTokenizer

from sftprep.data import TRAINED_KINDS, SpanKind
from sftprep.engines.load import load_model
from sftprep.shards.read import open_shard_set
from sftprep.templates.adapt import adapt_messages, probe_form
from sftprep.templates.template import ChatTemplate

OF_TURNS = {int(kind) for kind in (*TRAINED_KINDS, SpanKind.MASKED)}


@dataclass(frozen=True)
class Doc:
    """One document of a shard set: which row it is of, its ids, and its runs `(message, start, stop)`."""

    line: int
    ids: list[int]
    runs: list[tuple[int, int, int]]
    kwargs: dict[str, Any]


def first_rows(path: Path, *, count: int, target: Path) -> Path:
    """The first rows of a compressed file as a plain one."""
    with path.open("rb") as file, target.open("wb") as out:
        lines = io.BufferedReader(zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True))
        out.writelines(islice(lines, count))
    return target


def docs_of(out: Path) -> Iterator[Doc]:
    """Every document of a shard set, read from its columns alone."""
    shards = open_shard_set(out)
    for batch in shards.iter_batches():
        for row in batch.to_pylist():
            spans = list(zip(row["span_starts"], row["span_kinds"], row["span_messages"], strict=True))
            start = 0
            for size, line, kwargs in zip(row["seq_lengths"], row["doc_lines"], row["doc_kwargs"], strict=True):
                stop = start + size
                own = [s for s in spans if start <= s[0] < stop]
                yield Doc(
                    line, row["input_ids"][start:stop], runs(own, start, stop), shards.manifest.template_kwargs[kwargs]
                )
                start = stop


def runs(spans: list[tuple[int, int, int]], start: int, stop: int) -> list[tuple[int, int, int]]:
    """What a turn must emit, from its first token to its last: message, first and last position in the document."""
    found: dict[int, tuple[int, int]] = {}
    ends = [*(s[0] for s in spans[1:]), stop]
    for (begin, kind, message), end in zip(spans, ends, strict=True):
        if kind in OF_TURNS:
            found[message] = (found.get(message, (begin, 0))[0], end)
    return [(message, begin - start, end - start) for message, (begin, end) in found.items()]


class Server:
    """A model as transformers loads it, asked what a server would do."""

    def __init__(self, model: Path, now: datetime) -> None:
        files = load_model(str(model))
        template = ChatTemplate(
            files.template, special_tokens=files.special_tokens, stop_tokens=files.stop_tokens, now=now
        )
        self.form = probe_form(template)
        self.tokenizer = AutoTokenizer.from_pretrained(model)
        self.stops = set(files.stop_ids)
        self.engine = self.tokenizer.backend_tokenizer

    def text(self, messages: list[Any], row: dict[str, Any], kwargs: dict[str, Any], *, prompt: bool) -> str:
        """The text of these messages."""
        adapted = adapt_messages(messages, self.form)
        return str(
            self.tokenizer.apply_chat_template(
                adapted, tools=row.get("tools"), add_generation_prompt=prompt, tokenize=False, **kwargs
            )
        )

    def encode(self, text: str) -> list[int]:
        """The ids of a text that is whole."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def writes(self, prompt: list[int], own: list[int], text: str | None) -> bool:
        """Whether ids decode to a text behind a prompt's, as far as both reach."""
        before, after = (self.engine.decode(ids, skip_special_tokens=False) for ids in (prompt, prompt + own))
        written = after[len(before) :]
        return text is None or (after.startswith(before) and (text.startswith(written) or written.startswith(text)))

    def judge(self, doc: Doc, row: dict[str, Any]) -> Counter[str]:
        """AssertionError where a run of the document is not what the server would see and the model must write."""
        seen: Counter[str] = Counter()
        for message, start, stop in doc.runs:
            messages = row["messages"]
            prompt = self.text(messages[:message], row, doc.kwargs, prompt=True)
            assert doc.ids[:start] == self.encode(prompt), f"line {doc.line}, turn {message}: not the server's prompt"
            own = doc.ids[start:stop]
            assert own[-1] in self.stops, f"line {doc.line}, turn {message}: no stop token ends it"
            assert not set(own[:-1]) & self.stops, f"line {doc.line}, turn {message}: a stop token within"
            seen["turns"] += 1
            whole = self.text(messages[: message + 1], row, doc.kwargs, prompt=False)
            ids = self.encode(whole)
            said = whole[len(prompt) :] if whole.startswith(prompt) else None
            if ids[:start] == doc.ids[:start] and self.writes(ids[:start], ids[start:], said):
                assert [*ids[start:], own[-1]][: len(own)] == own, f"line {doc.line}, turn {message}: other ids"
                seen["whole"] += 1
            elif said is not None:
                # One encode of the whole text would write another text, or merge the border away.
                assert self.writes(doc.ids[:start], own, said), f"line {doc.line}, turn {message}: another text"
                seen["middle"] += 1
        return seen


def judge(out: Path, rows: Path, model: Path, *, now: datetime) -> Counter[str]:
    """Judge every trained run of a shard set; how many turns there were, and how many are the rest of one encode."""
    server = Server(model, now)
    lines = [json.loads(line) for line in rows.read_text(encoding="utf-8").split("\n") if line.strip()]
    seen: Counter[str] = Counter()
    for doc in docs_of(out):
        seen += server.judge(doc, lines[doc.line - 1])
    return seen

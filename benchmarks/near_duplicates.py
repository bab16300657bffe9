"""Near duplicates of a million rows made of real ones: CPU seconds, peak memory, and how many planted copies are found.

    python benchmarks/near_duplicates.py ../shared/corpus/chat/*.jsonl.zst --rows 100000
    python benchmarks/near_duplicates.py ../shared/corpus/chat/*.jsonl.zst --rows 1000000

A row is a prompt and a response. Of five rows, one is an earlier row of the last 50,000 with up to 5 percent of its
words changed; one has a real prompt and a response of real sentences in a new order; one has a template of 30 words
with as many real words filled in, the worst case for buckets; two are made of sentences drawn from all rows. One row in
a hundred is an exact copy. The three views are those of `sftprep.prepare.quality`.
"""

from __future__ import annotations

import argparse
import re
import resource
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sftprep.prepare.quality_rows import VIEWS, View
from sftprep.prepare.validate import read_conversations
from sftprep.stages.dialogue import row_text
from sftprep.stages.words import ngram_hashes, word_hashes, words

THRESHOLD = 0.8
MOST_WORDS = 400
TEMPLATE = " ".join(f"frame{number}" for number in range(30))
_SENTENCES = re.compile(r"(?<=[.!?\n])\s+")

Row = tuple[str, str]


@dataclass(frozen=True)
class Pool:
    """What rows are made of."""

    prompts: list[str]
    sentences: list[str]
    words: list[str]


@dataclass
class Maker:
    """Makes rows, and remembers some of the last to copy them."""

    pool: Pool
    rng: np.random.Generator
    kept: deque[tuple[int, Row]] = field(default_factory=lambda: deque(maxlen=50_000))

    def make(self, number: int) -> tuple[Row, int]:
        """A row, and the number of the row that it is a copy of; -1 for none."""
        kind = self.rng.random()
        if kind < 0.21 and self.kept:
            origin, row = self.kept[int(self.rng.integers(len(self.kept)))]
            return (row if kind < 0.01 else (self._changed(row[0]), self._changed(row[1]))), origin
        prompt = self._pick(self.pool.prompts) if kind < 0.41 else self._sentences(2)
        response = self._sentences(int(self.rng.integers(1, 8)))
        if kind > 0.8:
            prompt, response = (f"{TEMPLATE} {self._words(30)}" for _ in range(2))
        self.kept.append((number, (prompt, response)))
        return (prompt, response), -1

    def _pick(self, texts: list[str]) -> str:
        return texts[int(self.rng.integers(len(texts)))]

    def _sentences(self, count: int) -> str:
        return " ".join(self._pick(self.pool.sentences) for _ in range(count))

    def _words(self, count: int) -> str:
        return " ".join(self._pick(self.pool.words) for _ in range(count))

    def _changed(self, text: str) -> str:
        tokens = text.split(" ")
        for place in self.rng.integers(0, len(tokens), int(len(tokens) * 0.05 * self.rng.random())):
            tokens[place] = self._pick(self.pool.words)
        return " ".join(tokens)


def read_pool(files: list[Path]) -> Pool:
    """The prompts and sentences of real rows."""
    prompts, sentences = [], set()
    for path in files:
        for row in read_conversations(path, name=str(path)):
            if row.conversation is None:
                continue
            text = row_text(row.conversation)
            prompts.append(" ".join(text.prompts.split(" ")[:MOST_WORDS]))
            sentences.update(part for part in _SENTENCES.split(text.responses) if 3 <= len(part.split()) <= 60)
    ordered = sorted(sentences)
    return Pool(prompts, ordered, sorted({word for part in ordered for word in part.split()}))


def similarity(one: str, other: str) -> float:
    """The exact Jaccard similarity of two texts."""
    sets = [set(ngram_hashes(word_hashes(words(text)), n=3).tolist()) for text in (one, other)]
    return len(sets[0] & sets[1]) / max(len(sets[0] | sets[1]), 1)


def peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def sign(maker: Maker, views: dict[str, View], count: int) -> Iterator[tuple[int, int]]:
    """Add rows to the views; the responses that are copies at the threshold come out, each with its origin."""
    for number in range(count):
        row, origin = maker.make(number)
        for view, text in zip(views.values(), (*row, "\n".join(row)), strict=True):
            view.add(text)
        if number % 100_000 == 0:
            print(f"{number:>9,} rows, {time.process_time():6.0f} CPU s, {peak_gib():.2f} GiB", flush=True)
        # One copy in a hundred is compared exactly, which takes longer than to sign it.
        if origin >= 0 and number % 100 == 0:
            source = next((kept[1] for at, kept in maker.kept if at == origin), "")
            if similarity(source, row[1]) >= THRESHOLD:
                yield number, origin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--rows", type=int, default=100_000)
    options = parser.parse_args()
    maker, views = Maker(read_pool(options.files), np.random.default_rng(0)), {name: View() for name in VIEWS}
    started = time.process_time()
    copies = np.array(list(sign(maker, views, options.rows)))
    signed = time.process_time()
    print(f"{options.rows / (signed - started):,.0f} rows a CPU second signed, peak {peak_gib():.2f} GiB", flush=True)
    for name, view in views.items():
        before = time.process_time()
        found = view.clusters(threshold=THRESHOLD)
        share = f"near {found.repeated.mean():.1%}, exact {found.exact.mean():.1%}"
        print(f"{name}: {time.process_time() - before:.0f} CPU s joined, {share}, {peak_gib():.2f} GiB", flush=True)
        if name == "responses":
            recall = (found.labels[copies[:, 0]] == found.labels[copies[:, 1]]).mean()
            print(f"{len(copies):,} planted copies at {THRESHOLD}: found {recall:.1%}", flush=True)


if __name__ == "__main__":
    main()

"""Texts cut before control tokens, so that what several of them hold is encoded once: they share their beginnings.

A row whose history is rewritten has a sample for each turn, and each repeats the ones before it; system prompts and
tool schemas are those of other rows.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from sftprep.stages.encode_batch import EncodedTexts, Ints, flat_offsets


@dataclass(frozen=True, slots=True)
class CutTexts:
    """`pieces`: each once. `numbers`, int64: of all texts' pieces, one after another, which it is.

    Text `i` has `counts[i]` of them.
    """

    pieces: Sequence[bytes]
    numbers: Ints
    counts: Sequence[int]

    @property
    def num_bytes(self) -> int:
        """Bytes that are to be encoded."""
        return sum(map(len, self.pieces))

    def joined(self, encoded: EncodedTexts) -> EncodedTexts:
        """The texts, of their pieces as these are encoded."""
        sizes = np.diff(encoded.offsets)[self.numbers]
        ends = np.cumsum(sizes)
        total = int(ends[-1]) if len(ends) else 0
        moved = np.repeat(encoded.offsets[self.numbers] - (ends - sizes), sizes)
        borders = np.concatenate([np.zeros(1, np.int64), ends])[flat_offsets(self.counts)]
        return EncodedTexts(encoded.ids[np.arange(total) + moved], borders)


class Cutter:
    """Cuts texts where a tokenizer cuts them: before some of its added tokens.

    `added` are all of them, `cutting` those at which every encode is cut, wherever they stand by themselves.
    """

    def __init__(self, added: Collection[str], cutting: Collection[str]) -> None:
        found = sorted(borders(added, cutting), key=len, reverse=True)
        self._border = re.compile(b"|".join(re.escape(token.encode()) for token in found)) if found else None

    def cut(self, texts: Sequence[bytes]) -> CutTexts:
        """Of UTF-8 texts."""
        known: dict[bytes, int] = {}
        numbers: list[int] = []
        counts: list[int] = []
        for text in texts:
            own = [known.setdefault(piece, len(known)) for piece in self._pieces(text)]
            numbers += own
            counts.append(len(own))
        return CutTexts(list(known), np.array(numbers, dtype=np.int64), counts)

    def last_piece(self, text: bytes, stop: int) -> int:
        """Where the last piece of the first `stop` bytes begins."""
        found = () if self._border is None else self._border.finditer(text, 1, stop)
        return max((border.start() for border in found), default=0)

    def _pieces(self, text: bytes) -> Iterator[bytes]:
        start = 0
        if self._border is not None:
            for found in self._border.finditer(text, 1):
                stop = found.start()
                yield text[start:stop]
                start = stop
        yield text[start:]


def borders(added: Collection[str], cutting: Collection[str]) -> list[str]:
    """The cutting tokens that are read wherever their text stands, and change nothing before them.

    Those that no other token holds, is held by or overlaps, and that neither a word goes on with, nor white space that
    the token before or behind takes along.
    """
    together = "\0".join(["", *added, ""])
    held = [token for token in added if together.count(token) > 1]
    starts = {token[:stop] for token in added for stop in range(1, len(token))}
    ends = {token[start:] for token in added for start in range(1, len(token))}
    return [
        token
        for token in cutting
        if _is_apart(token)
        and not any(inner in token for inner in held)
        and not any(token[:cut] in ends or token[cut:] in starts for cut in range(1, len(token)))
    ]


def _is_apart(token: str) -> bool:
    return bool(token) and not (token[0].isalnum() or token[0] == "_" or token[0].isspace() or token[-1].isspace())

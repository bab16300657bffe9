"""The words of a text and the hashes of their n-grams, as everything that compares texts sees them.

Case, punctuation, width and white space do not count: "The tide, at six." and "the tide at SIX" have the same words.
Scripts written without spaces are cut into characters. Hashes are the same in every process and on every machine.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]

# Han, kana, Hangul, Thai, Lao, Khmer.
_UNSPACED: Final = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uac00-\ud7af\u0e00-\u0eff\u1780-\u17ff"
_WORD: Final = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+(?:['\u2019][^\W_{_UNSPACED}]+)*")
# Odd multipliers are invertible modulo 2^64, so no word of an n-gram is lost in the sum.
_STEP: Final = np.uint64(0x9E3779B97F4A7C15)
_MIX: Final = np.uint64(0xBF58476D1CE4E5B9)


def words(text: str) -> list[str]:
    """The words of a text in order, case folded."""
    plain = text if text.isascii() else unicodedata.normalize("NFKC", text)
    return _WORD.findall(plain.casefold())


def word_hashes(tokens: Sequence[str]) -> Hashes:
    """One hash a word, `[num_words]`."""
    return np.fromiter(map(_word_hash, tokens), np.uint64, len(tokens))


def ngram_hashes(hashes: Hashes, *, n: int) -> Hashes:
    """One hash for each run of n words, in order; a text shorter than n is one run, an empty one none."""
    n = min(n, len(hashes))
    if not n:
        return hashes
    count = len(hashes) - n + 1
    total = np.full(count, n, np.uint64)
    for k in range(n):
        total = total * _STEP + hashes[k : k + count]
    total ^= total >> np.uint64(29)
    total *= _MIX
    return total ^ (total >> np.uint64(32))


def text_digest(text: str) -> int:
    """64 bits that name a text exactly, white space at its ends aside."""
    data = text.strip().encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


@lru_cache(maxsize=1 << 18)
def _word_hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")

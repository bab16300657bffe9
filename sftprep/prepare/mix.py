"""How often each row of a source is taken, and in which order documents are planned."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import numpy.typing as npt

from sftprep.errors import DataError


def row_times(num_rows: int, *, epochs: float, seed: int, name: str) -> npt.NDArray[np.int64]:
    """How often each row is taken, int64 `[num_rows]`: its whole epochs, and once more for a drawn share of the rows.

    2.5 epochs of 10 rows take every row twice and five of them a third time; the seed and the source's name draw them.
    """
    whole = math.floor(epochs)
    num_extra = math.floor((epochs - whole) * num_rows + 0.5)
    times = np.full(num_rows, whole, dtype=np.int64)
    times[_generator(seed, name).permutation(num_rows)[:num_extra]] += 1
    return times


def planning_order(times: npt.NDArray[np.int64], *, seed: int) -> npt.NDArray[np.int64]:
    """Document numbers, each as often as `times` says, shuffled so that every window of the plan mixes all sources."""
    repeated = np.repeat(np.arange(len(times), dtype=np.int64), times)
    return _generator(seed, "planning order").permutation(repeated)


def wanted_rows(num_packs: int, *, num_documents: int, num_rows: int | None, multiple_of: int) -> int:
    """How many rows a set is to have whose documents fit into `num_packs`.

    Raises:
        DataError: `row-count` where they need more than `num_rows`, or are too few for a row each.
    """
    wanted = -(-(num_rows or num_packs) // multiple_of) * multiple_of
    if num_rows is not None and (wanted != num_rows or num_packs > num_rows):
        raise _no_such_rows(f"the documents need {num_packs:,} rows, a multiple of {multiple_of:,}, not {num_rows:,}")
    if wanted > num_documents:
        raise _no_such_rows(f"there are {num_documents:,} documents for {wanted:,} rows")
    return wanted


def _no_such_rows(message: str) -> DataError:
    hint = "change --num-rows or --rows-multiple-of, or take another --max-length"
    return DataError(f"{message}: nothing was published", code="row-count", hint=hint)


def _generator(seed: int, name: str) -> np.random.Generator:
    digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
    return np.random.default_rng([seed, int.from_bytes(digest, "big")])

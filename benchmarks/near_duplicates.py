"""Near duplicates of made texts: rows a second, peak memory, and recall of the copies that were planted.

python benchmarks/near_duplicates.py --rows 100000
python benchmarks/near_duplicates.py --rows 1000000 --views 3

One text in five is a copy of an earlier one with 5 percent of its words changed; one in twenty is a template with
three words filled in, the worst case for buckets. The three views of `sftprep.prepare.quality` are as many calls.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Iterator

import numpy as np

from sftprep.prepare.quality_rows import View

WORDS = 60
TEMPLATE = " ".join(f"frame{i}" for i in range(30))


def texts(count: int, *, seed: int) -> Iterator[tuple[str, int]]:
    """Texts, and of which earlier text each is a copy; -1 for none."""
    rng = np.random.default_rng(seed)
    vocabulary = np.array([f"w{i}" for i in range(50_000)])
    kept: list[tuple[int, np.ndarray]] = []
    for number in range(count):
        kind = rng.random()
        if kind < 0.2 and kept:
            origin, tokens = kept[int(rng.integers(len(kept)))]
            copy = tokens.copy()
            copy[rng.integers(0, WORDS, 1 + WORDS // 60)] = "changed"
            yield " ".join(copy), origin
        elif kind < 0.25:
            yield f"{TEMPLATE} {' '.join(rng.choice(vocabulary, 30))}", -1
        else:
            tokens = vocabulary[np.minimum(rng.zipf(1.3, WORDS), len(vocabulary)) - 1]
            if len(kept) < 5_000:
                kept.append((number, tokens))
            yield " ".join(tokens), -1


def peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--views", type=int, default=1)
    options = parser.parse_args()
    views, origins = [View() for _ in range(options.views)], []
    started = time.process_time()
    for number, (text, origin) in enumerate(texts(options.rows, seed=0)):
        origins.append(origin)
        for view in views:
            view.add(text)
        if number % 100_000 == 0:
            print(f"{number:>9,} rows, {time.process_time() - started:6.0f} s, {peak_gib():.2f} GiB", flush=True)
    signed = time.process_time()
    found_labels = [view.clusters(threshold=0.8).labels for view in views]
    joined = time.process_time()
    copies = np.array(origins)
    planted = np.flatnonzero(copies >= 0)
    found = (found_labels[0][planted] == found_labels[0][copies[planted]]).mean()
    print(
        f"{options.rows:,} rows, {options.views} views: {options.rows / (signed - started):,.0f} rows/s signed, "
        f"{joined - signed:.0f} s joined, peak {peak_gib():.2f} GiB, planted copies found {found:.1%}"
    )


if __name__ == "__main__":
    main()

"""How fast documents are planned into rows, and how full the rows are: ours, a floor, and TRL's packer.

    python benchmarks/plan.py ../shared/corpus/bench/chat_10k.jsonl.zst ../shared/corpus/models/qwen3/tokenizer.json

Lengths are drawn, with a seed, from those of real conversations. CPU seconds of this process, the best of some rounds.
The floor is what any planner of this kind must do: sort the lengths (radix, 16 bits) and gather once at random. TRL is
`pack_dataset(strategy="bfd")`, 1,000 rows a batch as its trainer calls it, on fewer rows, where it is installed.
Density is the share of positions that are filled, the bound the same for the fewest rows that the tokens could need.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from sftprep.sources.lines import read_rows
from sftprep.stages.pack import plan

SIZES = ((1_000_000, 2048), (1_000_000, 4096), (1_000_000, 8192), (10_000_000, 2048))
PUBLISHED = "not run here, published elsewhere on 10,000,000 at 2,048: numba best fit 1.8 s, TRL's loop 112, Axolotl 52"


def real_lengths(chats: Path, tokenizer: Path) -> np.ndarray:
    """Tokens of each conversation in plain ChatML, `[conversations]`."""
    encoder = Tokenizer.from_file(str(tokenizer))
    texts = []
    for row in read_rows(chats, name=str(chats)):
        chat = json.loads(row.raw)
        parts = [json.dumps(chat["tools"])] if chat.get("tools") else []
        for message in chat["messages"]:
            calls = json.dumps(message["tool_calls"]) if message.get("tool_calls") else ""
            parts.append(f"<|im_start|>{message['role']}\n{message.get('content') or ''}{calls}<|im_end|>\n")
        texts.append("".join(parts))
    batches = (texts[first : first + 500] for first in range(0, len(texts), 500))
    return np.array([len(found.ids) for batch in batches for found in encoder.encode_batch_fast(batch)], np.int32)


def best_cpu(work: Callable[[], Any], *, rounds: int) -> tuple[float, Any]:
    best, result = float("inf"), None
    for _ in range(rounds):
        start = time.process_time()
        result = work()
        best = min(best, time.process_time() - start)
    return best, result


def floor(lengths: np.ndarray) -> np.ndarray:
    order = np.argsort(lengths.astype(np.uint16), kind="stable")
    return order[np.random.default_rng(0).permutation(len(order))]


def trl_seconds(lengths: np.ndarray, *, capacity: int) -> tuple[float, float]:
    """CPU seconds a document and the density of TRL's packing."""
    from datasets import Dataset, disable_progress_bars
    from trl.data_utils import pack_dataset

    disable_progress_bars()
    rows = Dataset.from_dict({"input_ids": [[0] * int(length) for length in lengths]})
    seconds, packed = best_cpu(lambda: pack_dataset(rows, seq_length=capacity, strategy="bfd"), rounds=1)
    return seconds / len(lengths), float(lengths.sum(dtype=np.int64)) / (capacity * len(packed))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("chats", type=Path)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--peer-rows", type=int, default=20_000)
    options = parser.parse_args()
    known = real_lengths(options.chats, options.tokenizer)
    print(f"{len(known):,} real lengths: mean {known.mean():.0f}, p50 {np.median(known):.0f}, longest {known.max():,}")
    print(f"{'documents':>12} {'capacity':>8} {'CPU s':>7} {'ns/doc':>7} {'x floor':>8} {'density':>8} {'of bound':>9}")
    each = 0.0
    for count, capacity in SIZES:
        drawn = known[np.random.default_rng(0).integers(0, len(known), count)]
        lengths = np.minimum(drawn, capacity)
        seconds, packs = best_cpu(partial(plan, lengths, capacity=capacity, seed=0), rounds=options.rounds)
        lowest, _ = best_cpu(partial(floor, lengths), rounds=options.rounds)
        each, tokens = seconds / count, int(lengths.sum(dtype=np.int64))
        density, of_bound = tokens / (capacity * packs.num_packs), -(-tokens // capacity) / packs.num_packs
        print(
            f"{count:>12,} {capacity:>8,} {seconds:>7.2f} {1e9 * each:>7.0f} {seconds / lowest:>8.1f} "
            f"{density:>8.5f} {of_bound:>9.5f}"
        )
    print(PUBLISHED)
    if importlib.util.find_spec("trl") is None:
        print("TRL is not installed: not compared")
        return
    lengths = np.minimum(known[np.random.default_rng(1).integers(0, len(known), options.peer_rows)], 2048)
    theirs, density = trl_seconds(lengths, capacity=2048)
    print(
        f"TRL, {options.peer_rows:,} at 2,048: {1e9 * theirs:,.0f} ns/doc, {theirs / each:,.0f} x ours, {density:.5f}"
    )


if __name__ == "__main__":
    main()

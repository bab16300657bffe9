"""How fast every row of a shard set is counted and checked, beside the floor: pyarrow reading the same columns.

python benchmarks/audit.py [TOKENS]

Both run in turns in one process, in CPU seconds of one core, on the samples of this repository packed many times over.
"""

from __future__ import annotations

import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq

from sftprep.config.pack import PackConfig, SourceSpec
from sftprep.prepare.audit_report import summarise
from sftprep.prepare.pack import pack
from sftprep.shards.read import ShardSet

SAMPLES = Path(__file__).resolve().parent.parent / "data_samples"
SAMPLE_TOKENS = 7_322
ROUNDS = 5


def packed(out: Path, *, tokens: int) -> ShardSet:
    epochs = max(1, tokens // SAMPLE_TOKENS)
    files = sorted((SAMPLES / "good").glob("*.jsonl"))
    sources = tuple(SourceSpec(name=path.stem, path=path, epochs=epochs) for path in files)
    config = PackConfig(sources=sources, model=str(SAMPLES / "model"), out=out, max_length=4096)
    return pack(config).shards


def floor(shards: ShardSet) -> None:
    for shard in shards.manifest.shards:
        file = pq.ParquetFile(shards.directory / shard.file, memory_map=True)
        for group in range(file.num_row_groups):
            file.read_row_group(group, use_threads=False)


def seconds(run: Callable[[ShardSet], object], shards: ShardSet) -> float:
    start = time.process_time()
    run(shards)
    return time.process_time() - start


def main() -> None:
    tokens = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000_000
    with tempfile.TemporaryDirectory() as folder:
        shards = packed(Path(folder) / "set", tokens=tokens)
        number = shards.manifest.counts.num_tokens
        summarise(shards)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        pairs = [(seconds(floor, shards), seconds(summarise, shards)) for _ in range(ROUNDS)]
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    read, audited = (statistics.median(times) for times in zip(*pairs, strict=True))
    documents = shards.manifest.counts.num_documents
    print(f"{number:,} tokens, {documents:,} documents, median of {ROUNDS} rounds, one core")
    print(f"pyarrow reads the columns   {number / read / 1e6:6.1f} million tokens a CPU second")
    print(f"the audit counts and checks {number / audited / 1e6:6.1f} million tokens a CPU second")
    print(f"ratio to the floor {read / audited:.2f}; peak memory grew by {grown / 1024:.0f} MiB after the first pass")


if __name__ == "__main__":
    main()

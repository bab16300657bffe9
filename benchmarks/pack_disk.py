"""Where the bytes of a shard set are: bytes a token by column, from the Parquet files' own metadata, and all together.

    python benchmarks/pack_disk.py packed

Published elsewhere for the same kind of data, not run here: TRL 12 (54 with its caches), LLaMA-Factory 32,
Axolotl 21, Megatron-Bridge about 1.9 bytes a token.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq

from sftprep.shards.read import ShardSet, open_shard_set


def bytes_by_column(shards: ShardSet) -> Counter[str]:
    """Compressed bytes of each column; what is in no column is the file's own."""
    found: Counter[str] = Counter()
    for shard in shards.manifest.shards:
        metadata = pq.read_metadata(shards.directory / shard.file)
        found["(file)"] += shard.num_bytes
        for group in range(metadata.num_row_groups):
            for index in range(metadata.num_columns):
                column = metadata.row_group(group).column(index)
                found[column.path_in_schema.split(".")[0]] += column.total_compressed_size
                found["(file)"] -= column.total_compressed_size
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("packed", type=Path)
    options = parser.parse_args()
    shards = open_shard_set(options.packed)
    num_tokens = shards.manifest.counts.num_tokens
    print(f"{num_tokens:,} tokens in {shards.num_rows:,} rows")
    columns = bytes_by_column(shards)
    beside = sum(path.stat().st_size for path in options.packed.rglob("*") if path.is_file()) - columns.total()
    for name, size in [*columns.most_common(), ("(all shards)", columns.total()), ("(beside them)", beside)]:
        print(f"{name:>18} {size:>12,} {size / num_tokens:>8.4f}")


if __name__ == "__main__":
    main()

"""What a pack costs the one machine that drives it, whoever compiles: the serial part of a pack on a cluster.

    python benchmarks/pack_driver.py [--rows 20000] [--model DIR]

One process packs recomposed conversations (see pack_scaling.py) and looks at its own CPU seconds around every step.
Compiling is what a cluster does instead; what it adds is that chunks are sent there and back (pickled here, both ways).
"""

from __future__ import annotations

import argparse
import pickle
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pack import CORPUS, SAMPLES
from pack_scaling import recomposed

from sftprep.config.pack import PackConfig
from sftprep.prepare import chunk_record, chunk_work, document_files, shard_work
from sftprep.prepare import pack as pack_module
from sftprep.prepare.chunk_account import ChunkAccount
from sftprep.prepare.pack import pack
from sftprep.shards import part
from sftprep.shards.gather import Documents

SECONDS: Counter[str] = Counter()
BYTES: Counter[str] = Counter()


def timed(step: str, call: Callable[..., Any]) -> Callable[..., Any]:
    def around(*args: Any, **options: Any) -> Any:
        start = time.process_time()
        try:
            return call(*args, **options)
        finally:
            SECONDS[step] += time.process_time() - start

    return around


def timed_items(step: str, call: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """Of a generator: the seconds between being asked and giving, not what is done with what it gives."""

    def around(*args: Any, **options: Any) -> Iterator[Any]:
        items = call(*args, **options)
        ask = timed(step, lambda: next(items, None))
        return iter(ask, None)

    return around


def sent(value: Any) -> int:
    """Bytes of what goes to a worker or comes from one, packed and unpacked as Ray does."""
    apart: list[pickle.PickleBuffer] = []
    data = pickle.dumps(value, protocol=5, buffer_callback=apart.append)
    pickle.loads(data, buffers=apart)
    return len(data) + sum(part.raw().nbytes for part in apart)


def watched(call: Callable[..., Any], *, way: str) -> Callable[..., Any]:
    """What the cluster does, of which what it is given is `sent`, or what it gives is `received`."""
    compiled = timed("compile (the cluster's)", call)
    there_and_back = timed("send and receive chunks", sent)

    def around(given: Any, **options: Any) -> Any:
        done = compiled(given, **options)
        BYTES[way] += there_and_back(given if way == "sent" else done)
        return done

    return around


def watch() -> None:
    pack_module.input_files = timed("read and hash", pack_module.input_files)
    pack_module.input_chunks = timed_items("read and cut", pack_module.input_chunks)
    pack_module.load_model = timed("load (once)", pack_module.load_model)
    pack_module.plan = timed("plan", pack_module.plan)
    Documents.rows = timed_items("gather", Documents.rows)
    for step in ("write", "close"):
        setattr(part._Part, step, timed("encode and write shards", getattr(part._Part, step)))
    shard_work.tally_shard = timed("audit", shard_work.tally_shard)
    pack_module.Spool._add = timed("spool", pack_module.Spool._add)
    pack_module.Ledger.add = timed("account", pack_module.Ledger.add)
    chunk_work.batch_compiler = timed("load (once)", chunk_work.batch_compiler)
    ChunkAccount.of = watched(ChunkAccount.of, way="received")
    chunk_record.packed = watched(chunk_record.packed, way="received")
    document_files.DocumentsFile.add = timed("spool", document_files.DocumentsFile.add)
    chunk_record.dump = timed("spool", chunk_record.dump)
    chunk_work.compiled = watched(chunk_work.compiled, way="sent")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=20_000)
    known = CORPUS / "models" / "smollm2-135m-instruct"
    parser.add_argument("--model", type=Path, default=known if known.exists() else SAMPLES / "model")
    options = parser.parse_args()
    watch()
    with tempfile.TemporaryDirectory() as name:
        rows = Path(name) / "rows.jsonl"
        with rows.open("wb") as file:
            file.writelines(recomposed(options.rows))
        limits = {"max_length": 2048, "over_length": "drop", "max_drop": "100%"}
        start = time.process_time()
        made = pack(PackConfig(files=(rows,), model=str(options.model), out=Path(name) / "set", **limits))
        SECONDS["everything else"] = time.process_time() - start - SECONDS.total()
        num_bytes = rows.stat().st_size
    counts = made.shards.manifest.counts
    on_disk = sum(shard.num_bytes for shard in made.shards.manifest.shards)
    print(
        f"{options.rows:,} conversations, {num_bytes:,} bytes, {counts.num_tokens:,} tokens packed, {on_disk:,} on disk"
    )
    print(
        f"a chunk's bytes: {BYTES['sent'] / num_bytes:.2f} of the input's sent, {BYTES['received']:,} received in all"
    )
    print("\n| step | CPU s | µs a conversation | ns a token |\n|---|---|---|---|")
    for step, seconds in SECONDS.most_common():
        each = (1e6 * seconds / options.rows, 1e9 * seconds / counts.num_tokens)
        print(f"| {step} | {seconds:.2f} | {each[0]:.1f} | {each[1]:.1f} |")


if __name__ == "__main__":
    main()

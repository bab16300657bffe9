"""Writing fails for real (a file that may not grow, a signal, a full file system) and leaves nothing behind."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from sftprep.data import TOKEN_BATCH_SCHEMA, PackPlan, SpanKind
from sftprep.shards import gather as gather_module
from sftprep.shards.gather import gather

WRITE = textwrap.dedent("""
    import os, resource, signal, sys
    from pathlib import Path
    import numpy as np, pyarrow as pa
    from sftprep.data import TOKEN_BATCH_SCHEMA, PackPlan
    from sftprep.errors import SftprepError
    from sftprep.shards.gather import gather
    from sftprep.shards.part import write_shard
    from sftprep.shards.place import named_failures
    from sftprep.shards.write import ShardWriter

    out, fault = Path(sys.argv[1]), sys.argv[2]
    ids = np.random.default_rng(0).integers(0, 150_000, 200_000).tolist()
    row = {"input_ids": ids, "span_starts": [0, 9], "span_kinds": [0, 5], "span_messages": [-1, 0],
           "span_weights": [1.0, 1.0], "doc_file": 0, "doc_line": 1, "doc_sample": 0,
           "doc_kwargs": "{}"}
    documents = pa.Table.from_pylist([row] * 4, schema=TOKEN_BATCH_SCHEMA)
    (batch,) = gather(documents, PackPlan(np.array([0]), np.array([0, 1])))
    if fault == "limit":
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))

    def batches():
        for number in range(8):
            yield batch
            if fault == "interrupt" and number == 2:
                os.kill(os.getpid(), signal.SIGINT)

    try:
        with ShardWriter(out, fingerprint="f") as writer:
            with named_failures(out):
                writer.add(write_shard(writer.directory, batches(), number=0, weights=False))
    except SftprepError as error:
        print(error.code)
        sys.exit(error.exit_code)
""")


def run(out: Path, fault: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", WRITE, str(out), fault], capture_output=True, text=True, check=False)


def test_a_file_that_may_not_grow_is_one_error_and_leaves_nothing(tmp_path: Path) -> None:
    done = run(tmp_path / "set", "limit")
    assert (done.returncode, done.stdout.strip(), done.stderr) == (2, "disk-full", "")
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_between_row_groups_leaves_nothing(tmp_path: Path) -> None:
    done = run(tmp_path / "set", "interrupt")
    assert done.returncode in (-signal.SIGINT, 130, 1)
    assert "KeyboardInterrupt" in done.stderr
    assert "Exception ignored" not in done.stderr, "the file that was given up is not ended later"
    assert list(tmp_path.iterdir()) == []


def test_a_full_file_system_is_one_error_and_leaves_nothing(tmp_path: Path) -> None:
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("this machine does not let a test mount a small tmpfs")
    try:
        done = run(tmp_path / "set", "none")
        assert (done.returncode, done.stdout.strip(), done.stderr) == (2, "disk-full", "")
        assert list(tmp_path.iterdir()) == []
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def table_of(lengths: list[int], *, weight: float = 1.0) -> pa.Table:
    rows = [
        {
            "input_ids": list(range(length)),
            "span_starts": [0, 1],
            "span_kinds": [int(SpanKind.HEADER), int(SpanKind.COMPLETION)],
            "span_messages": [-1, 0],
            "span_weights": [1.0, weight],
            "doc_file": 0,
            "doc_line": line,
            "doc_sample": 0,
            "doc_kwargs": "{}",
        }
        for line, length in enumerate(lengths, 1)
    ]
    return pa.Table.from_pylist(rows, schema=TOKEN_BATCH_SCHEMA)


def test_a_batch_is_bounded_by_tokens_however_many_rows_there_are_d9(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gather_module, "BATCH_TOKENS", 100)
    lengths = [7] * 200
    packs = PackPlan(np.arange(200), np.arange(0, 201, 2))
    batches = list(gather(table_of(lengths), packs))
    assert len(batches) > 10
    assert max(len(batch["input_ids"].flatten()) for batch in batches) <= 100 + 14
    assert sum(batch.num_rows for batch in batches) == 100


def test_documents_in_many_chunks_are_gathered_as_if_in_one_h7() -> None:
    whole = table_of([3, 5, 2, 9, 4, 6])
    chunks = pa.concat_tables([whole.slice(0, 1), whole.slice(1, 3), whole.slice(4)])
    packs = PackPlan(np.array([5, 0, 3, 1, 4, 2]), np.array([0, 2, 5, 6]))
    one, many = (pa.Table.from_batches(gather(table, packs)) for table in (whole, chunks))
    assert chunks["input_ids"].num_chunks == 3
    assert one.equals(many)
    assert {str(field.type.value_type) for field in one.schema if pa.types.is_list(field.type)} <= {
        "int8",
        "int32",
        "int64",
    }


def test_a_weight_is_never_dropped_without_a_word() -> None:
    packs = PackPlan(np.array([0]), np.array([0, 1]))
    with pytest.raises(ValueError, match="weights column"):
        list(gather(table_of([4], weight=0.5), packs))

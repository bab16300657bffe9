"""What users of packing suffer from elsewhere, as demands on ours (F9, F10, G1, H1, H2, H3, H7 of the requirements)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import weakref
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sftprep.config import pack as options
from sftprep.prepare import pack as pack_module
from sftprep.prepare import workers
from sftprep.prepare.chunk_account import ChunkAccount
from sftprep.prepare.chunk_work import rows_of
from sftprep.prepare.inputs import InputChunk
from sftprep.prepare.ledger import Ledger
from sftprep.shards.schema import SHARD_SCHEMA
from sftprep.sources import lines
from sftprep.sources.blocks import LineBlock
from sftprep.templates.template import ChatTemplate


def rows(count: int, *, words: int = 400) -> Iterator[dict[str, Any]]:
    for number in range(count):
        answer = f"Answer {number}: " + "and so on " * (number % words)
        yield {"messages": [{"role": "user", "content": "Go on"}, {"role": "assistant", "content": answer}]}


def call(folder: Path, samples: Path, count: int, **settings: Any) -> Any:
    path = folder / f"{count}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows(count)), encoding="utf-8")
    known = {"files": (path,), "model": str(samples / "model"), "out": folder / f"set-{count}", "max_length": 2048}
    return options.PackConfig(**{**known, **settings})


def test_nothing_is_cut_or_dropped_by_a_length_that_nobody_named_g1(samples: Path) -> None:
    known = {"files": ("a.jsonl",), "model": str(samples / "model"), "out": "out"}
    with pytest.raises(ValueError, match="--max-length is required"):
        options.PackConfig(**known)
    unpacked = options.PackConfig(**known, packing=False)
    assert unpacked.max_length is None
    assert unpacked.over_length is options.OverLength.REFUSE
    assert unpacked.max_drop == "0"


def test_all_columns_of_a_row_have_its_length_f9(tmp_path: Path, samples: Path) -> None:
    # Read by pyarrow alone, and against what `seq_lengths` say, not against each other.
    pack_module.pack(call(tmp_path, samples, 60))
    (path,) = (tmp_path / "set-60" / "shards").iterdir()
    seen = 0
    for row in pq.read_table(path).to_pylist():
        length, documents = sum(row["seq_lengths"]), len(row["seq_lengths"])
        seen += documents
        assert len(row["input_ids"]) == len(row["assistant_masks"]) == length
        assert {len(row[name]) for name in ("doc_files", "doc_lines", "doc_samples", "doc_kwargs")} == {documents}
        assert len(row["span_starts"]) == len(row["span_kinds"]) == len(row["span_messages"])
        assert row["span_starts"][0] == 0
        assert row["span_starts"] == sorted(set(row["span_starts"]))
        assert row["span_starts"][-1] < length
    assert seen == 60


def test_ids_are_small_and_compressed_and_nothing_is_stored_that_lengths_tell_h7(tmp_path: Path, samples: Path) -> None:
    pack_module.pack(call(tmp_path, samples, 60))
    (path,) = (tmp_path / "set-60" / "shards").iterdir()
    file = pq.ParquetFile(path)
    assert not set(file.schema_arrow.names) & {"attention_mask", "position_ids", "labels", "cu_seqlens"}
    assert file.schema_arrow.names == SHARD_SCHEMA.names
    assert file.schema_arrow.field("input_ids").type.value_type == pa.int32()
    assert file.schema_arrow.field("assistant_masks").type.value_type == pa.int8()
    group = file.metadata.row_group(0)
    assert {group.column(index).compression for index in range(group.num_columns)} == {"ZSTD"}


def test_no_chunk_is_held_once_it_is_counted_f10_h2(
    tmp_path: Path, samples: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # So memory is bounded by chunks, however many rows there are; batches of shards are bounded by their tokens (D9).
    monkeypatch.setattr(lines, "BLOCK_BYTES", 1 << 12)
    add, seen, alive = Ledger.add, [], []

    def counted(ledger: Ledger, account: ChunkAccount) -> None:
        seen.append(weakref.ref(account.times))
        alive.append(sum(times() is not None for times in seen))
        add(ledger, account)

    monkeypatch.setattr(Ledger, "add", counted)
    pack_module.pack(call(tmp_path, samples, 150))
    assert len(seen) > 8
    assert max(alive) <= 2
    assert not any(times() is not None for times in seen)


def test_a_shape_is_rendered_once_and_not_once_a_row_h1(
    tmp_path: Path, samples: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: Counter[int] = Counter()
    render = ChatTemplate.render
    counting = 0

    def counted(*arguments: Any, **named: Any) -> Any:
        calls[counting] += 1
        return render(*arguments, **named)

    monkeypatch.setattr(ChatTemplate, "render", counted)
    for counting in (100, 400):
        pack_module.pack(call(tmp_path, samples, counting))
    # One in 1,024 is compiled again without its plan: a few renders more at most.
    assert calls[400] < calls[100] + 20
    assert calls[400] < 100


def slow_first(chunk: InputChunk) -> int:
    """A child's work: the first chunk is done when all others are, if they can be. The process that did it."""
    done = Path(os.environ["DONE"])
    # Looks, not seconds: a machine that stands still meanwhile takes none away.
    for _ in range(2000):
        if chunk.block.first != 1 or len(os.listdir(done)) == 4:
            break
        time.sleep(0.01)
    (done / str(chunk.block.first)).touch()
    return os.getpid()


@pytest.mark.slow
def test_a_slow_chunk_holds_up_one_worker_and_no_other_h1(
    samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DONE", str(tmp_path))
    config = options.PackConfig(files=("a",), model=str(samples / "model"), out="out", max_length=64, workers=2)
    chunks = (InputChunk(0, "a", LineBlock(b"{}", line, 0), 1) for line in range(1, 6))
    with workers.Crew(config) as crew:
        done = list(crew.ordered(slow_first, chunks, named=rows_of))
    assert len(set(done)) == 2
    assert done.count(done[0]) == 1, "whoever was free took the rest"


def loaded_by_training() -> set[str]:
    """Modules that are there when training can begin."""
    program = "import sys, sftprep.train.run, sftprep.train.loop; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.slow
def test_training_has_nothing_to_tokenise_or_render_with_h3() -> None:
    found = loaded_by_training()
    assert "sftprep.train.loop" in found
    encoding = {"sftprep.engines.reference", "sftprep.engines.fast", "sftprep.stages.encode", "sftprep.stages.render"}
    assert not found & (encoding | {"sftprep.stages.encode_batch", "sftprep.templates.template"})
    assert not [name for name in found if name.startswith(("sftprep.prepare", "sftprep.sources", "sftprep.records"))]

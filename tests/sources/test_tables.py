"""Rows of tables are JSON objects, a few at a time; a null of a struct is read as absent, and said (D2, D3, D8, D9)."""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sftprep.errors import SourceError, UsageError
from sftprep.sources import tables
from sftprep.sources.blocks import SourceRow
from sftprep.sources.compressed import Source
from sftprep.sources.lines import read_rows
from sftprep.sources.paths import expand

ROWS: list[dict[str, Any]] = [
    {"messages": [{"role": "user", "content": "Tide?"}, {"role": "assistant", "content": "潮 At six."}], "n": 1},
    {
        "messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "t", "arguments": {"b": 1}}}]}],
        "n": 2,
    },
    {
        "messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "t", "arguments": {"a": "x"}}}]}],
        "n": 3,
    },
]


def write(path: Path, kind: str, table: pa.Table) -> Path:
    if kind == "parquet":
        pq.write_table(table, path, row_group_size=2)
    else:
        writer = pa.ipc.new_file if kind == "file" else pa.ipc.new_stream
        with writer(str(path), table.schema) as sink:
            sink.write_table(table, max_chunksize=2)
    return path


def rows_of(path: Path) -> list[SourceRow]:
    return list(read_rows(path, name="f"))


@pytest.mark.parametrize("kind", ["parquet", "file", "stream"])
def test_rows_come_as_they_were_and_absent_keys_stay_absent_d3(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / "nameless", kind, pa.Table.from_pylist(ROWS))
    rows = rows_of(path)
    assert [json.loads(row.raw) for row in rows] == ROWS
    assert [row.address.line for row in rows] == [1, 2, 3]
    dropped = "/messages/0/tool_calls/0/function/arguments"
    assert [row.dropped_null for row in rows] == ["", f"{dropped}/a", f"{dropped}/b"]
    steps: list[int] = []
    list(read_rows(path, name="f", on_bytes=steps.append))
    assert sum(steps) == path.stat().st_size


def test_a_column_of_the_json_type_keeps_null_and_mixed_types_d2(tmp_path: Path) -> None:
    texts = ['{"role":"user","x":null}', '{"role":1}', None]
    items = pa.ExtensionArray.from_storage(pa.json_(), pa.array(texts))
    column = pa.ListArray.from_arrays(pa.array([0, 3], pa.int32()), items)
    path = write(tmp_path / "f", "parquet", pa.table({"messages": column}))
    assert rows_of(path)[0].raw == b'{"messages": [{"role": "user", "x": null}, {"role": 1}, null]}'


def test_values_that_json_lacks_are_text(tmp_path: Path) -> None:
    table = pa.table(
        {
            "day": pa.array([datetime.date(2026, 1, 2)]),
            "blob": pa.array([b"ab"]),
            "map": pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64())),
            "gone": pa.array([None], pa.string()),
        }
    )
    raw = rows_of(write(tmp_path / "f", "file", table))[0].raw
    assert json.loads(raw) == {"day": "2026-01-02", "blob": "YWI=", "map": {"k": 1}}


@pytest.mark.parametrize("kind", ["parquet", "file", "stream"])
def test_a_damaged_table_is_an_error_with_the_row_reached(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / "f", kind, pa.Table.from_pylist(ROWS * 200))
    data = path.read_bytes()
    for stop in range(8, len(data) - 1, max(1, len(data) // 40)):
        path.write_bytes(data[:stop])
        found = []
        with pytest.raises(SourceError) as caught:
            found.extend(read_rows(path, name="f"))
        assert caught.value.code in {"damaged-table", "empty-file"}
        assert caught.value.place in {f"f:{len(found) + 1}", "f"}


@pytest.mark.parametrize("kind", ["parquet", "file", "stream"])
@pytest.mark.parametrize("value", [b"\xff", b"\x7f", b"\x00"])
def test_a_changed_byte_anywhere_gives_rows_or_one_error_and_never_ends_the_process(
    tmp_path: Path, kind: str, value: bytes
) -> None:
    data = write(tmp_path / "f", kind, pa.Table.from_pylist(ROWS)).read_bytes()
    reader = "import sys; from sftprep.sources.lines import read_rows; from sftprep.errors import SourceError\n"
    body = f"""
from pathlib import Path
path, data = Path(sys.argv[1]), Path(sys.argv[1]).read_bytes()
for at in range(8, len(data), {max(1, len(data) // 400)}):
    path.write_bytes(data[:at] + {value!r} + data[at + 1:])
    try:
        rows = sum(1 for _ in read_rows(path, name="f"))
    except SourceError as error:
        assert error.code in {{"damaged-table", "empty-file"}}
"""
    (tmp_path / "f").write_bytes(data)
    done = subprocess.run([sys.executable, "-c", reader + body, str(tmp_path / "f")], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr[-1500:].decode()


def test_a_saved_dataset_is_its_arrow_files_and_one_with_splits_is_refused(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    saved = datasets.Dataset.from_list(ROWS)
    saved.save_to_disk(tmp_path / "one", num_shards=2)
    files = expand([tmp_path / "one"])
    assert len(files) == 2
    assert [json.loads(row.raw)["n"] for path in files for row in read_rows(path, name="f")] == [1, 2, 3]
    datasets.DatasetDict({"train": saved, "test": saved}).save_to_disk(tmp_path / "two")
    with pytest.raises(UsageError) as caught:
        expand([tmp_path / "two"])
    assert caught.value.code == "several-splits"
    assert str(tmp_path / "two" / "train") in caught.value.hint
    (tmp_path / "one" / "state.json").write_text("{}")
    with pytest.raises(UsageError, match="does not name"):
        expand([tmp_path / "one"])


def test_patterns_are_written_out_in_order_and_a_file_of_that_name_is_itself(tmp_path: Path) -> None:
    for name in ("b/2.jsonl", "a/1.jsonl", "[x].jsonl", "c.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = expand([tmp_path / "**" / "*.jsonl", tmp_path / "[x].jsonl", Path("-"), tmp_path / "no"])
    names = [path.name for path in found]
    assert names == ["[x].jsonl", "1.jsonl", "2.jsonl", "[x].jsonl", "-", "no"]
    with pytest.raises(UsageError) as caught:
        expand([tmp_path / "*.csv"])
    assert caught.value.code == "missing-file"


@pytest.mark.parametrize("form", ["parquet", "arrow file", "arrow stream"])
def test_a_table_of_one_large_group_is_read_a_few_rows_at_a_time_d9(tmp_path: Path, form: str) -> None:
    # Offsets of 32 bits overflow where a group as a whole is made into one array.
    table = pa.table({"prompt": [f"q{n}" for n in range(5_000)], "response": ["a"] * 5_000}).combine_chunks()
    path = tmp_path / "t"
    if form == "parquet":
        pq.write_table(table, path, row_group_size=5_000)
    else:
        make = pa.ipc.new_file if form == "arrow file" else pa.ipc.new_stream
        with make(path, table.schema) as writer:
            writer.write_table(table)
    sizes = [batch.num_rows for batch in tables._batches(Source(path), None)]
    assert sum(sizes) == 5_000
    assert max(sizes) <= 1_000
    assert [json.loads(row.raw)["prompt"] for row in read_rows(path, name="t")] == [f"q{n}" for n in range(5_000)]

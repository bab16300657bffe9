"""Who checks the blocks changes nothing: reports and files are the same, and a child that dies is named (M1, M2)."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sftprep.config.validate import ValidateConfig
from sftprep.errors import DataError
from sftprep.prepare.check_workers import Chunk, check_chunks
from sftprep.prepare.validate import validate_files
from sftprep.sources import lines
from sftprep.sources.blocks import LineBlock
from tests.prepare.dealing import NUM_CHILDREN, dealt_blocks

OUTPUTS = ("good", "bad", "fix_to")
CHAT = [{"role": "user", "content": "Tide?"}, {"role": "assistant", "content": "At six."}]
PIECES = [
    {"messages": CHAT},
    {"messages": CHAT, "topic": "sea"},
    {"messages": CHAT[:1] + CHAT, "note": 1},
    {"messages": CHAT[:1]},
    {"messages": CHAT[:1], "topic": "sea", "id": 3},
    {"conversations": [{"from": "human", "value": "cafÃ©"}, {"from": "gpt", "value": " "}], "id": 3},
]
LINES = [*(json.dumps(row, ensure_ascii=False).encode() for row in PIECES), b"", b"  {}\r", b"[1", b'{"a": "\xff"}']


def outcome(folder: Path, files: tuple[Path, ...], **options: Any) -> tuple[dict[str, Any], list[bytes | None]]:
    """The report, with what a page would show, and the files' bytes."""
    outputs = {key: folder / f"{key}.out" for key in OUTPUTS}
    for path in outputs.values():
        path.unlink(missing_ok=True)
    report = validate_files(ValidateConfig(files=files, html=folder / "r.html", **outputs, **options))
    written = [path.read_bytes() if path.exists() else None for path in outputs.values()]
    return report.model_dump() | {"excerpts": report.excerpts}, written


def damaged_table(path: Path) -> Path:
    """One of 900 rows has a key twice in a map: seen when the second batch is read, when others were handed on."""
    maps = [[("a", 1)]] * 300 + [[("a", 1), ("a", 2)]] + [[("a", 1)]] * 599
    chats = [CHAT[:1] if number % 3 else CHAT for number in range(900)]
    table = pa.table({"messages": chats, "map": pa.array(maps, pa.map_(pa.string(), pa.int64()))})
    with pa.ipc.new_file(path, table.schema) as sink:
        sink.write_table(table, max_chunksize=128)
    return path


def test_children_say_and_write_what_one_process_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "BLOCK_BYTES", 512)  # Blocks are cut in this process.
    table = damaged_table(tmp_path / "b.arrow")
    (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + b"\n".join(LINES * 9))
    (tmp_path / "c.json").write_text(json.dumps(PIECES * 5, indent=1), encoding="utf-8")
    (tmp_path / "empty").write_bytes(b"\n")
    files = (table, tmp_path / "a.jsonl", tmp_path / "empty", tmp_path / "c.json")
    alone, shared = (outcome(tmp_path, files, workers=workers, max_errors=200) for workers in (1, 2))
    assert alone == shared
    assert [file["complete"] for file in alone[0]["files"]] == [False, True, False, True]
    assert (alone[0]["files"][0]["rows_in"], alone[0]["by_code"]["damaged-table"]) == (256, 1)
    assert alone[1] == [None] * 3
    # What was found in rows that do not count takes no room in the list.
    listed = [finding for finding in alone[0]["findings"] if finding["severity"] == "error"]
    assert alone[0]["num_errors"] > len(listed) == 200


@settings(deadline=None, max_examples=40)
@given(st.lists(st.lists(st.sampled_from(LINES), min_size=1, max_size=12), min_size=1, max_size=2), st.data())
def test_whichever_child_gets_a_block_the_outcome_is_the_same(
    tmp_path_factory: pytest.TempPathFactory, contents: list[list[bytes]], data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("w")
    files = tuple(folder / str(number) for number in range(len(contents)))
    for path, content in zip(files, contents, strict=True):
        path.write_bytes(b"\n".join(content))
    max_errors = data.draw(st.integers(0, 3))

    expected = outcome(folder, files, max_errors=max_errors)
    child, block_bytes = st.integers(0, NUM_CHILDREN - 1), data.draw(st.integers(1, 300))
    with dealt_blocks(lambda: data.draw(child), block_bytes=block_bytes):
        assert outcome(folder, files, max_errors=max_errors) == expected


class Deadly(bytes):
    """Rows that end the process which receives them."""

    def __reduce__(self) -> tuple[object, ...]:
        return os._exit, (9,)


def test_a_child_that_dies_is_an_error_that_names_its_rows() -> None:
    config = ValidateConfig(files=(Path("f"),), workers=2)
    blocks = [LineBlock(Deadly(b"{}") if number == 2 else b"{}", number, 0) for number in range(1, 4)]
    with pytest.raises(DataError) as caught:
        list(check_chunks((Chunk("f", block) for block in blocks), config=config))
    assert caught.value.code == "worker-died"
    assert caught.value.place.startswith("f:")
    assert "--workers" in caught.value.hint

"""What is known before the plan, kept on disk: token batches, and the rows left out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Final, Self
from uuid import uuid4

import pyarrow as pa

from sftprep.data import TOKEN_BATCH_SCHEMA
from sftprep.prepare.chunk import LeftOutRow
from sftprep.shards.place import named_failures

LEFT_OUT_NAME: Final = "left_out.jsonl"
"""Every row that is not in the shards, one JSON object a line, in input order."""


class Spool:
    """Token batches as one Arrow IPC file and the left-out rows as JSON lines, beside the output and gone at the end.

    The output's own disk holds it: where the shards fit, about three times their bytes are needed meanwhile.
    OutputError where the place cannot be written or is full.
    """

    def __init__(self, out: Path) -> None:
        self._out = out
        # Named before it is made: whatever interrupts, it is known what to remove.
        place = out.resolve()
        self._directory = place.with_name(f".{place.name}.spool-{uuid4().hex[:12]}")

    def __enter__(self) -> Self:
        try:
            with named_failures(self._out):
                self._open()
        except BaseException:
            shutil.rmtree(self._directory, ignore_errors=True)
            raise
        return self

    def _open(self) -> None:
        self._out.parent.mkdir(parents=True, exist_ok=True)
        self._directory.mkdir()
        self._file = (self._directory / "documents.arrow").open("xb")
        self._batches = pa.ipc.new_file(self._file, TOKEN_BATCH_SCHEMA)
        self._left_out = (self._directory / LEFT_OUT_NAME).open("x", encoding="utf-8", newline="\n")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Buffered bytes that do not fit on a full disk would raise again on closing, and they are not wanted.
        shutil.rmtree(self._directory, ignore_errors=True)

    def add(self, documents: pa.RecordBatch, left_out: tuple[LeftOutRow, ...]) -> None:
        """Append a chunk's documents (TOKEN_BATCH_SCHEMA) and its left-out rows."""
        with named_failures(self._out):
            if documents.num_rows:
                self._batches.write_batch(documents)
            self._left_out.writelines(json.dumps(_record(row), ensure_ascii=False) + "\n" for row in left_out)

    def documents(self) -> pa.Table:
        """All documents in order, memory-mapped; nothing can be added afterwards."""
        with named_failures(self._out):
            self._batches.close()
            self._file.close()
        return pa.ipc.open_file(pa.memory_map(str(self._directory / "documents.arrow"))).read_all()

    def left_out(self) -> bytes:
        """The lines of `left_out.jsonl`."""
        with named_failures(self._out):
            self._left_out.close()
        return (self._directory / LEFT_OUT_NAME).read_bytes()


def left_out_lines(jsonl: bytes) -> Iterator[str]:
    """Every finding of the left-out rows, in words: `file:line:/json/pointer: what [code]`."""
    # Only a newline ends a line: texts hold U+2028 and the like.
    for line in jsonl.decode("utf-8").split("\n")[:-1]:
        row = json.loads(line)
        for finding in row["findings"]:
            place = f"{row['file']}:{row['line']}:{finding['pointer']}"
            yield f"{place}: {finding['message']} [{finding['code']}]"


def _record(row: LeftOutRow) -> dict[str, object]:
    return {
        "file": row.address.file,
        "line": row.address.line,
        "code": row.code,
        "times": row.times,
        "num_tokens": row.num_tokens,
        "num_trained": row.num_trained,
        "findings": [
            {"code": finding.code, "pointer": finding.pointer, "message": finding.message} for finding in row.findings
        ],
    }

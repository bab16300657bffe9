"""The rows that a pack leaves out, as they are listed beside the shards and told in words."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Final

from sftprep.prepare.chunk import LeftOutRow

LEFT_OUT_NAME: Final = "left_out.jsonl"
"""Every row that is not in the shards, one JSON object a line, in input order."""


def left_out_json(row: LeftOutRow) -> bytes:
    """A line of `left_out.jsonl`."""
    record = {
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
    # Half of a character, in a key that a finding names, is the escape that JSON has.
    return (json.dumps(record, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")


def left_out_lines(jsonl: Iterable[bytes]) -> Iterator[str]:
    """Every finding of the left-out rows, in words: `file:line:/json/pointer: what [code]`."""
    for line in jsonl:
        row = json.loads(line)
        for finding in row["findings"]:
            address, pointer = f"{row['file']}:{row['line']}", finding["pointer"]
            place = f"{address}:{pointer}" if pointer else address
            yield f"{place}: {finding['message']} [{finding['code']}]"

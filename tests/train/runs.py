"""What several tests of training do to a run: stop it, interrupt it, or change what it reads."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sftprep.train import run


def stopping_after(step: int) -> Callable[..., Any]:
    """`run_steps` that is sent SIGTERM once a step is done."""
    real = run.run_steps

    def steps(*arguments: Any, **keywords: Any) -> Any:
        for record, position in real(*arguments, **keywords):
            if position.step == step:
                os.kill(os.getpid(), signal.SIGTERM)
            yield record, position

    return steps


def interrupted_after(number: int) -> Callable[..., Any]:
    """`run_steps` that is interrupted by Ctrl-C after so many steps."""
    real = run.run_steps

    def steps(*arguments: Any, **keywords: Any) -> Any:
        for done, item in enumerate(real(*arguments, **keywords)):
            if done == number:
                raise KeyboardInterrupt
            yield item

    return steps


def metrics_of(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def edit_column(data: Path, column: str, edit: Callable[[list[Any]], list[Any]]) -> None:
    """A column of every shard's rows, changed; the manifest still tells of the bytes before."""
    for shard in sorted((data / "shards").iterdir()):
        table = pq.read_table(shard)
        number = table.schema.get_field_index(column)
        field = table.schema.field(number)
        values = pa.array(edit(table[column].to_pylist()), field.type)
        pq.write_table(table.set_column(number, field, values), shard, row_group_size=3)


def accept_set(data: Path, **changes: Any) -> None:
    """The manifest as `changes` say, and as the shards now are."""
    manifest = json.loads((data / "manifest.json").read_text())
    for record in manifest["shards"]:
        shard = data / record["file"]
        record |= {"sha256": hashlib.sha256(shard.read_bytes()).hexdigest(), "num_bytes": shard.stat().st_size}
    (data / "manifest.json").write_text(json.dumps(manifest | changes))

"""Rows by an expression over their documents."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
from polars.exceptions import PolarsError

from sftprep.errors import UsageError
from sftprep.prepare.audit_tally import audit_facts
from sftprep.shards.read import ShardSet
from sftprep.stages.mask_audit import AuditFacts, audit_batch

_NAMES: Final = ("row", "document", "file", "line", "length", "trained", "share", "density", "code")


def matching_rows(shards: ShardSet, where: str) -> npt.NDArray[np.int64]:
    """The numbers of the rows with at least one document for which the expression holds, ascending.

    Raises:
        UsageError: `bad-expression`.
    """
    condition = _parsed(where)
    facts = audit_facts(shards)
    files = np.array([source.path for source in shards.manifest.sources], dtype=object)
    found: list[npt.NDArray[np.int64]] = []
    first = 0
    for batch in shards.iter_batches():
        frame = _documents(batch, facts=facts, first=first, files=files)
        try:
            rows = frame.filter(condition)["row"].unique().sort()
        except PolarsError as error:
            raise _bad(where, error) from error
        found.append(rows.to_numpy())
        first += batch.num_rows
    return np.concatenate([np.zeros(0, np.int64), *found])


def _parsed(where: str) -> pl.Expr:
    try:
        condition = pl.sql_expr(where)
        unknown = set(condition.meta.root_names()) - set(_NAMES)
    except PolarsError as error:
        raise _bad(where, error) from error
    if unknown:
        raise _bad(where, f"nothing is called {sorted(unknown)[0]!r}")
    return condition


def _bad(where: str, reason: object) -> UsageError:
    return UsageError(
        f"--where {where!r}: {str(reason).partition(chr(10))[0]}",
        code="bad-expression",
        hint=f"a SQL condition over {', '.join(_NAMES)}; text in single quotes",
    )


def _documents(batch: pa.RecordBatch, *, facts: AuditFacts, first: int, files: npt.NDArray[Any]) -> pl.DataFrame:
    """One line a document of each row that can be read, and one a row that cannot: those have only their code."""
    audited = audit_batch(batch, facts=facts)
    codes: dict[int, list[str]] = {}
    for code, row in audited.faults:
        codes.setdefault(row, [])
        codes[row] += [code] if code not in codes[row] else []
    rows = audited.document_rows
    sizes = dict(zip(np.unique(rows).tolist(), audited.row_lengths.tolist(), strict=True))
    lines = pl.Series(batch["doc_lines"].flatten()) if len(sizes) == batch.num_rows else _lines(batch, set(sizes))
    starts = np.searchsorted(rows, rows, side="left")
    frame = pl.DataFrame(
        {
            "row": rows + first,
            "document": np.arange(len(rows)) - starts,
            "file": files[audited.document_sources].tolist(),
            "line": lines,
            "length": audited.document_lengths,
            "trained": audited.document_trained,
            "share": audited.document_trained / audited.document_lengths,
            "density": np.array([sizes[row] for row in rows.tolist()]) / facts.max_length,
            "code": [" ".join(codes.get(row, [])) for row in rows.tolist()],
        },
        schema_overrides={"file": pl.String, "code": pl.String, "line": pl.Int64, "density": pl.Float64},
    )
    unread = sorted(set(codes) - set(sizes))
    bad = pl.DataFrame({"row": [row + first for row in unread], "code": [" ".join(codes[row]) for row in unread]})
    return pl.concat([frame, bad.cast({"row": pl.Int64, "code": pl.String})], how="diagonal")


def _lines(batch: pa.RecordBatch, readable: set[int]) -> pl.Series:
    kept = batch["doc_lines"].take(pa.array(sorted(readable), pa.int64()))
    return pl.Series("line", kept.flatten())

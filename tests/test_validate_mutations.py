"""What reads, checks and names rows can fail to: each fault is planted, and its witness must see it (D8–D10, M1–M3)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest

from sftprep.data import RowAddress
from sftprep.prepare import check_block, fit
from sftprep.records import json_text, read
from sftprep.shards import gather
from sftprep.shards import part as parts
from sftprep.sources import blocks, tables
from sftprep.stages import validate
from tests import test_mutations, test_validate_row
from tests.prepare import test_validate_files, test_validate_outputs
from tests.records import test_json_text
from tests.shards import test_columns, test_write_failures
from tests.sources import test_lines, test_tables
from tests.test_mutations import NOTHING, Plant, changed, constant, wrapped


def nested(part: Any, batch: pa.RecordBatch) -> None:
    """Lists of documents in lists of rows, as they would come to mind."""
    lists = pa.ListArray.from_arrays(pa.array(range(len(batch) + 1), pa.int32()), batch["input_ids"])
    batch = batch.set_column(0, "input_ids", lists)
    if part.num_rows == 0:
        part._writer = parts.pq.ParquetWriter(part._sink, batch.schema)
    part._writer.write_batch(batch)
    part.num_rows += len(batch)
    part.num_tokens += parts.pc.sum(parts.pc.list_value_length(lists.flatten())).as_py()
    part.num_trained += parts.pc.sum(batch["num_trained"]).as_py()
    part.weight_sum += parts.pc.sum(batch["weight_sum"]).as_py()


def in_any_lines(block: blocks.LineBlock, name: str) -> Iterator[blocks.SourceRow]:
    """Cut wherever Python's own reading of lines cuts."""
    offset = block.offset
    for number, line in enumerate(block.data.decode("utf-8").splitlines(), start=block.first):
        if line.strip():
            yield blocks.SourceRow(RowAddress(name, number), line.encode(), offset)
        offset += len(line.encode()) + 1


def as_one(row_tokens: Any) -> npt.NDArray[np.int64]:
    return np.zeros(1, dtype=np.int64)


def first_fault(findings: tuple[Any, ...]) -> tuple[Any, ...]:
    return findings[:1]


def without_hints(findings: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(replace(finding, hint="") for finding in findings)


def without_places(findings: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(replace(finding, pointer="") for finding in findings)


def once_a_code(gathered: Any, finding: Any, raw: bytes) -> None:
    """Only the first row of each fault is told."""
    if not any(kind.code == finding.code for kind in gathered._counts):
        ADD_FINDING(gathered, finding, raw)


def fits_always(*_: object, **__: object) -> Callable[..., Any]:
    return lambda _: (None, ())


ADD_FINDING = check_block._Gathered._add_finding
COLUMNS = test_columns.test_every_column_is_a_number_or_a_flat_list_of_numbers_d8
ONE_GROUP = test_tables.test_a_table_of_one_large_group_is_read_a_few_rows_at_a_time_d9
BATCHES = test_write_failures.test_a_batch_is_bounded_by_tokens_however_many_rows_there_are_d9
AT_ONCE = test_validate_row.test_all_faults_of_a_row_come_at_once_d10
FAULTS = test_validate_row.test_a_fault_has_its_code_and_its_place
ALL_ROWS = test_validate_files.test_findings_are_listed_up_to_the_limit_and_all_are_counted
RAISES = test_validate_outputs.test_a_row_whose_template_raises_is_named_at_its_place_d10
ORDER = test_validate_outputs.test_the_message_that_breaks_the_order_which_the_template_demands_is_named_d10
MARKS = test_lines.test_crlf_byte_order_mark_and_blank_lines_are_not_part_of_rows_m1
LINE_FEED = test_lines.test_only_a_line_feed_ends_a_row_m2
TEXT_FAULT = test_json_text.test_each_fault_of_the_text_has_its_code_and_place
BAD_SAMPLE = test_validate_files.test_each_bad_sample_shows_the_fault_that_it_is_named_after

USER, ANSWER = test_validate_row.USER, test_validate_row.ANSWER
OUT_OF_ORDER = {"row": {"messages": [USER, ANSWER, USER, USER, ANSWER]}, "place": "/messages/3"}
HALF_SAMPLE = {"name": "lone_surrogate"}
HALF = {"text": b'{"a": "\\ud83c"}', "expected": [("lone-surrogate", "/a")]}

MUTATIONS: list[tuple[str, str, Plant, Callable[..., object], Any]] = [
    ("a column holds lists of lists", "D8", changed(parts._Part, "write", nested), COLUMNS, NOTHING),
    ("a group is read whole", "D9", changed(tables, "_BATCH_ROWS", 1 << 20), ONE_GROUP, {"form": "arrow file"}),
    ("all rows are one batch", "D9", changed(gather, "_first_with_each", as_one), BATCHES, NOTHING),
    ("only the first fault is told", "D10", wrapped(validate, "_findings", first_fault), AT_ONCE, NOTHING),
    ("rules wait until the keys are right", "D10", constant(read, "_readable_rules", []), AT_ONCE, NOTHING),
    (
        "only the first row is told",
        "D10",
        changed(check_block._Gathered, "_add_finding", once_a_code),
        ALL_ROWS,
        NOTHING,
    ),
    ("no hint", "D10", wrapped(validate, "_findings", without_hints), FAULTS, "two questions D10"),
    ("no place", "D10", wrapped(validate, "_findings", without_places), FAULTS, "two questions D10"),
    ("the template is not asked", "D10", changed(fit, "fitter", fits_always), RAISES, NOTHING),
    ("the message is not named", "D10", constant(fit, "_refused_from", "/messages"), ORDER, OUT_OF_ORDER),
    ("a byte order mark is text", "M1", changed(blocks, "UTF8_BOM", b"\xfe\xff"), MARKS, NOTHING),
    (
        "text is cut at U+2028",
        "M2",
        changed(blocks.LineBlock, "rows", in_any_lines),
        LINE_FEED,
        {"separator": "\u2028"},
    ),
    ("half a character passes", "M3", constant(json_text, "is_encodable", True), TEXT_FAULT, HALF),
    ("half a character has no line", "M3", constant(json_text, "is_encodable", True), BAD_SAMPLE, HALF_SAMPLE),
]


def test_every_requirement_of_sources_and_findings_has_a_mutation() -> None:
    met = {name for mutation in MUTATIONS for name in mutation[1].split()}
    assert met == {"D8", "D9", "D10", "M1", "M2", "M3"}
    assert not met & test_mutations.requirements()


@pytest.mark.parametrize("mutation", MUTATIONS, ids=[f"{m[1]} {m[0]}" for m in MUTATIONS])
def test_the_witness_sees_the_fault(
    mutation: tuple[str, str, Plant, Callable[..., object], Any],
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    test_mutations.test_the_witness_sees_the_fault(mutation, monkeypatch, request)

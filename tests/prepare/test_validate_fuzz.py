"""Whatever bytes a file holds: no crash, no hang, and every row is good or bad (M1, M2, M3, D2)."""

from __future__ import annotations

import gzip
import io
import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import cycle
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sftprep.config.validate import ValidateConfig
from sftprep.data import Severity
from sftprep.prepare.validate import FILE_CODES, validate_files
from sftprep.records.codes import CODES
from sftprep.reports.findings import ValidationReport, report_lines
from sftprep.reports.publication import json_bytes
from sftprep.reports.validate_html import page
from tests.prepare.dealing import dealt_blocks

ROOT = Path(__file__).resolve().parent.parent.parent
SAMPLES = ROOT / "data_samples"
SECONDS = 20.0
"""Of CPU: far above what a small file takes, and below what a loop without end takes."""


def _array(lines: bytes) -> bytes:
    return b"[" + b",\n".join(lines.splitlines()) + b"]"


def _table(lines: bytes) -> pa.Table:
    rows = [json.loads(line) for line in lines.splitlines()[:3]]
    return pa.Table.from_pylist([{key: row[key] for key in rows[0].keys() & row.keys()} for row in rows])


def _parquet(lines: bytes) -> bytes:
    sink = io.BytesIO()
    pq.write_table(_table(lines), sink, compression="none")
    return sink.getvalue()


def _stream(lines: bytes) -> bytes:
    sink = io.BytesIO()
    table = _table(lines)
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


GOOD = [
    b"".join(path.read_bytes().splitlines(keepends=True)[:4]) for path in sorted((SAMPLES / "good").glob("*.jsonl"))
]
BAD = [path.read_bytes() for path in sorted((SAMPLES / "bad").glob("*.jsonl"))]
FORMS: list[Callable[[bytes], bytes]] = [bytes, _array, gzip.compress, zstandard.compress, _parquet, _stream]
SEEDS = [form(lines) for lines in GOOD for form in FORMS] + BAD
TOKENS = [b"\n", b"\r\n", b"[", b"]", b"{", b"}", b'"', b"\\", b",", b":", b"\xff", b"\xef\xbb\xbf", b"\xed\xa0\x80"]
TOKENS += [b"\\ud800", b"\\u0000", b"null", b"NaN", b"1e999", b"-", b"9" * 400, b'"role"', b'"messages":', b"</think>"]
TOKENS += [b"[" * 300, b'{"a":' * 300, b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PAR1", b"ARROW1", b"\0" * 9, b'"tools":']
# What other readers take for a line end or for nothing.
TOKENS += [b"\r", b"\n\x0b\n", b"\n\x0c\n", b"\x1c", b"\xc2\x85", b"\xe2\x80\xa8", b"\xe3\x80\x80", b"\n\xc2\xa0\n"]
NAMES = st.sampled_from(["f.jsonl", "f.json", "f", "f.gz", "f.zst", "f.parquet"])


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A sample's bytes after a few cuts, repeats, flips and insertions."""
    data = bytearray(draw(st.sampled_from(SEEDS)))
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, max(len(data), 1)))
        length = draw(st.integers(0, 24))
        match draw(st.sampled_from(["cut", "end", "repeat", "token", "flip"])):
            case "cut":
                del data[at : at + length]
            case "end":
                del data[at:]
            case "repeat":
                data[at:at] = data[at : at + length] * 2
            case "token":
                data[at:at] = draw(st.sampled_from(TOKENS))
            case "flip":
                data[at : at + 1] = bytes([draw(st.integers(0, 255))])
    return bytes(data)


_VALUES = json.JSONDecoder(parse_int=len, parse_float=len, parse_constant=len, strict=False)


def count_rows(data: bytes, *, name: str) -> int:
    """How many rows a sound file holds, by other readers than ours, the whole file in memory."""
    if data.startswith(b"PAR1"):
        return pq.ParquetFile(io.BytesIO(data)).metadata.num_rows
    if data.startswith((b"ARROW1", b"\xff\xff\xff\xff")):
        make = pa.ipc.open_file if data.startswith(b"ARROW1") else pa.ipc.open_stream
        return make(pa.py_buffer(data)).read_all().num_rows
    if data.startswith(b"\x1f\x8b"):
        data = gzip.decompress(data)
    elif data.startswith(b"\x28\xb5\x2f\xfd") or re.match(rb"[\x50-\x5f]\x2a\x4d\x18", data):
        data = zstandard.ZstdDecompressor().stream_reader(io.BytesIO(data), read_across_frames=True).read()
    text = data.lstrip(b" \t\r\n").removeprefix(b"\xef\xbb\xbf").lstrip(b" \t\r\n")
    opening = b"[" if name.endswith(".json") else b"[{"
    if text.translate(None, b" \t\r\n").startswith(opening) and not name.endswith(".jsonl"):
        return len(_VALUES.decode(text.decode("utf-8", "surrogateescape")))
    lines = data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    return sum(bool(line.strip(b" \t\r")) for line in lines)


def check(path: Path, data: bytes, row_format: str | None) -> ValidationReport:
    """Every row is good, or bad for a reason that is told, in time."""
    path.write_bytes(data)
    start = time.process_time()
    report = validate_files(ValidateConfig(files=(path,), format=row_format, max_errors=0))
    assert time.process_time() - start < SECONDS
    assert report.rows_in == report.good + report.bad
    if report.files[0].complete:
        assert report.rows_in == count_rows(data, name=path.name)
    assert report.by_code.keys() <= CODES.keys() | FILE_CODES
    assert (report.num_errors > 0) == (report.bad > 0 or not report.files[0].complete)
    bad_rows = {finding.address.line for finding in report.findings if finding.severity is Severity.ERROR}
    assert len(bad_rows) == report.bad + (not report.files[0].complete)
    return report


def check_outputs(path: Path, data: bytes, row_format: str | None) -> ValidationReport:
    """The same whichever child has which rows, and each row is in the file that it belongs to."""
    report = check(path, data, row_format)
    outputs = {key: path.with_name(f"{key}.out") for key in ("good", "bad", "fix_to", "html")}
    for output in outputs.values():
        output.unlink(missing_ok=True)
    deal = cycle((0, 1, 1, 2, 0))
    with dealt_blocks(lambda: next(deal), block_bytes=64):
        written = validate_files(ValidateConfig(files=(path,), format=row_format, max_errors=0, **outputs))
    whole = {"quarantine_published": written.quarantine_published, "passed": written.passed}
    assert written.model_dump() == report.model_dump() | whole
    if written.quarantine_published:
        counts = [outputs[key].read_bytes().count(b"\n") for key in ("good", "bad", "fix_to")]
        assert counts == [report.good, report.bad, report.good]
        fixed = validate_files(ValidateConfig(files=(outputs["fix_to"],), format="openai")) if report.good else report
        assert fixed.good == report.good
    page(report)
    "\n".join(report_lines(report, quiet=False)).encode("utf-8", "backslashreplace")
    json.loads(json_bytes(report))
    return report


FORMATS = st.sampled_from([None, None, "openai", "sharegpt", "alpaca", "prompt-response"])
QUIET = [HealthCheck.too_slow, HealthCheck.data_too_large]


@settings(deadline=None, max_examples=100, suppress_health_check=QUIET)
@given(damaged() | st.binary(max_size=200), NAMES, FORMATS)
def test_any_file_is_rows_that_are_good_or_bad(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, name: str, row_format: str | None
) -> None:
    check_outputs(tmp_path_factory.getbasetemp() / name, data, row_format)


@pytest.mark.slow
@pytest.mark.timeout(900)
@settings(deadline=None, max_examples=1_500, suppress_health_check=QUIET)
@given(damaged() | st.binary(max_size=4000), NAMES, FORMATS)
def test_any_of_many_files_is_rows_that_are_good_or_bad(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, name: str, row_format: str | None
) -> None:
    check_outputs(tmp_path_factory.getbasetemp() / name, data, row_format)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_fuzzer_that_follows_what_runs_finds_nothing_in_a_minute() -> None:
    pytest.importorskip("atheris")
    command = [sys.executable, "-m", "tests.fuzz_bytes", "--seconds", "60"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    counts = [int(count) for count in re.findall(r"cov: (\d+)", done.stderr)]
    assert int(re.findall(r"Done (\d+) runs", done.stderr)[-1]) > 100
    assert counts[-1] > counts[0] > 0

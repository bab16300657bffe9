"""Files of rows: everything counted, nothing lost, nothing half-written."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from sftprep.config.validate import ValidateConfig
from sftprep.data import Severity
from sftprep.errors import OutputError, SourceError, UsageError
from sftprep.prepare.validate import read_conversations, validate_files
from sftprep.records.draft import Format
from sftprep.reports.findings import ValidationReport, report_lines
from sftprep.reports.publication import publishing

GOOD = b'{"messages": [{"role": "user", "content": "Tide?"}, {"role": "assistant", "content": "At six."}]}'
BAD = b'{"messages": [{"role": "user", "content": "Tide?"}]}'

SAMPLES = {
    "invalid_utf8": ["2::invalid-utf8"],
    "truncated_json": ["2::bad-json"],
    "unknown_key": ["1:/messages/0/wieght:unknown-key", "1:/messages/1/loss:unknown-key"],
    "no_assistant": ["1:/messages:no-assistant"],
    "orphan_tool_result": ["1:/messages/1/tool_call_id:unknown-tool-call-id"],
    "bad_arguments": [
        "1:/messages/1/tool_calls/0/function/arguments:bad-arguments",
        "1:/messages/1/tool_calls:no-tools",
    ],
    "unknown_tool": ["1:/messages/1/tool_calls/0/function/name:unknown-tool"],
    "arguments_misfit": ["1:/messages/1/tool_calls/0/function/arguments:arguments-misfit"],
    "unanswered_call": ["1:/messages/1/tool_calls/1:unanswered-call"],
    "made_up_tool_result": ["1:/messages/1/content:embedded-tool-result"],
    "mojibake": ["1:/messages/1/content:mojibake", "2:/messages/0/content:replacement-character"],
    "control_character": ["1:/messages/0/content:control-character"],
    "blank_texts": ["1:/messages/0/content:blank-content", "1:/messages/1:empty-completion"],
    "turns_out_of_order": [
        "1:/messages/1:starts-with-assistant",
        "1:/messages/3:consecutive-user",
        "1:/messages/5:late-system",
    ],
    "empty_answer": ["1:/messages/1:empty-completion"],
    "duplicate_key": ["1:/messages/0/content:duplicate-key"],
    "lone_surrogate": ["1:/messages/0/content:lone-surrogate"],
    "orphan_think": ["1:/messages/1/content:unbalanced-reasoning"],
    "mixed_formats_are_fine": [],
    "two_formats_in_a_row": ["1::ambiguous-row"],
    "unknown_format": ["1::unknown-format"],
    "empty": ["1::empty-file"],
    "crlf_bom_is_fine": [],
    "u2028_is_fine": [],
    "wrong_types": [
        "1:/messages/0/content:wrong-type",
        "1:/messages/1/role:unknown-role",
        "1:/messages/2/tool_calls:wrong-type",
        "1:/messages/2/weight:bad-weight",
        "1:/messages/3:wrong-type",
        "1:/tools:tools-string",
    ],
}


def write(path: Path, *lines: bytes) -> Path:
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


def report_of(*files: Path, **options: object) -> ValidationReport:
    return validate_files(ValidateConfig.model_validate({"files": files, **options}))


def sftprep(*argv: object, **environment: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "sftprep", "validate", *map(str, argv)]
    return subprocess.run(command, capture_output=True, check=False, env=os.environ | environment)


@pytest.mark.parametrize("name", SAMPLES)
def test_each_bad_sample_shows_the_fault_that_it_is_named_after(samples: Path, name: str) -> None:
    report = report_of(samples / "bad" / f"{name}.jsonl")
    assert [f"{f.address.line}:{f.pointer}:{f.code}" for f in report.findings] == SAMPLES[name]
    assert report.passed == all(f.severity is Severity.WARNING for f in report.findings)


def test_every_bad_sample_is_tested_and_every_good_sample_passes(samples: Path) -> None:
    assert {path.stem for path in (samples / "bad").glob("*")} == set(SAMPLES)
    good = sorted((samples / "good").glob("*.jsonl"))
    assert len(good) >= 4
    report = report_of(*good)
    assert (report.bad, report.num_errors, report.passed) == (0, 0, True)
    assert {format for file in report.files for format in file.formats} == set(Format)
    told = next(line for line in report_lines(report, quiet=False) if line.startswith("read as "))
    assert sorted(told.removeprefix("read as ").split(", ")) == [
        "alpaca: 10",
        "openai: 65",
        "prompt-response: 15",
        "sharegpt: 8",
    ]
    assert not any("read as" in line for line in report_lines(report_of(good[1]), quiet=False))


@settings(deadline=None)
@given(
    st.lists(
        st.binary(max_size=40) | st.sampled_from([GOOD, b"  " + GOOD + b"\t", BAD, b"{}", b"[]", b""]),
        min_size=1,
        max_size=8,
    )
)
def test_any_bytes_are_good_or_bad_rows_and_all_are_quarantined(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]
) -> None:
    folder = tmp_path_factory.mktemp("v")
    data = b"\n".join([GOOD, *lines])
    (folder / "f").write_bytes(data)
    report = report_of(folder / "f", format="openai", good=folder / "good", bad=folder / "bad")
    rows = [line.removesuffix(b"\r") for line in data.split(b"\n") if line.strip(b" \t\r")]
    assert report.rows_in == report.good + report.bad == len(rows)
    good = (folder / "good").read_bytes().split(b"\n")[:-1]
    entries = [json.loads(line) for line in (folder / "bad").read_text("utf-8").splitlines()]
    bad = [base64.b64decode(e["raw_base64"]) if "raw_base64" in e else e["raw"].encode() for e in entries]
    assert sorted(good + bad) == sorted(rows)
    assert all(any(f["severity"] == "error" for f in entry["findings"]) for entry in entries)


def test_findings_are_listed_up_to_the_limit_and_all_are_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "f", *[GOOD] * 3, *[BAD] * 7)
    report = report_of(path, max_errors=2)
    assert (report.num_errors, len(report.findings), report.num_unlisted) == (7, 2, 5)
    assert report.by_code == report.files[0].by_code == {"no-assistant": 7}
    assert len(report_of(path, max_errors=0).findings) == 7
    assert "... and 5 more" in "\n".join(report_lines(report, quiet=False))
    assert "\n".join(report_lines(report, quiet=False)).count("hint:") == 1


def test_an_unknown_row_key_is_said_once_a_file_and_kept(tmp_path: Path) -> None:
    row = GOOD[:-1] + b', "topic": "sea", "id": 3}'
    files = [write(tmp_path / name, row, row) for name in ("a", "b")]
    report = report_of(*files)
    assert report.by_code == {"unknown-row-key": 4}
    assert report.passed
    assert not report_of(*files, fail_on=("warning",)).passed
    conversations = [row.conversation for row in read_conversations(files[0], name="a")]
    assert [c and c.metadata for c in conversations] == [{"topic": "sea", "id": 3}] * 2


def test_pack_reads_one_row_for_each_line_that_is_not_blank(tmp_path: Path) -> None:
    rows = list(read_conversations(write(tmp_path / "f", GOOD, b"", BAD, b"{", GOOD), name="chats"))
    assert [str(row.address) for row in rows] == ["chats:1", "chats:3", "chats:4", "chats:5"]
    assert [row.conversation is not None for row in rows] == [True, False, False, True]
    with pytest.raises(UsageError, match="no format is called"):
        list(read_conversations(tmp_path / "f", name="f", format="chatml"))
    with pytest.raises(SourceError, match="holds no rows"):
        list(read_conversations(write(tmp_path / "g", b""), name="g"))


def test_each_row_is_of_the_format_whose_keys_it_has_unless_one_is_named(tmp_path: Path) -> None:
    pair = b'{"prompt": "a", "response": "b"}'
    path = write(tmp_path / "f", *[GOOD] * 100, pair, b'{"a": 1}')
    report = report_of(path)
    assert report.files[0].formats == {"openai": 100, "prompt-response": 1}
    assert [(f.address.line, f.code) for f in report.findings] == [(102, "unknown-format")]
    report = report_of(path, format="openai")
    assert [(f.address.line, f.code) for f in report.findings] == [(101, "other-format"), (102, "missing-key")]


def test_a_cut_archive_is_a_finding_at_its_line_and_publishes_no_quarantine(tmp_path: Path) -> None:
    rows = b"\n".join(GOOD.replace(b"six", b"%d" % (n**9)) for n in range(3000))
    (tmp_path / "f.zst").write_bytes(zstandard.compress(rows)[:-2000])
    (tmp_path / "good").write_text("the last good one")
    report = report_of(tmp_path / "f.zst", write(tmp_path / "g", GOOD), good=tmp_path / "good")
    assert report.by_code == {"bad-archive": 1}
    assert 0 < report.files[0].rows_in < 3000
    assert report.findings[0].address.line == report.files[0].rows_in + 1
    assert (report.files[0].complete, report.files[1].rows_in, report.exit_code) == (False, 1, 1)
    assert not report.quarantine_published
    done = sftprep(tmp_path / "f.zst", "--good", tmp_path / "good", "--fail-on", "mojibake", "-q")
    assert (done.returncode, f"not written, as a file could not be read to its end: {tmp_path / 'good'}") == (
        1,
        done.stderr.decode().strip(),
    )
    assert sftprep(tmp_path / "f.zst", "--fail-on", "mojibake", "-q").returncode == 0
    assert (tmp_path / "good").read_text() == "the last good one"
    assert {path.name for path in tmp_path.iterdir()} == {"f.zst", "g", "good"}


def test_an_output_never_replaces_an_input(tmp_path: Path) -> None:
    path = write(tmp_path / "f", GOOD)
    (tmp_path / "link").hardlink_to(path)
    write(tmp_path / "eval", GOOD)
    write(tmp_path / "t.toml", b"loop_share = 0.3")
    for options in (
        {"good": path},
        {"bad": tmp_path / "link"},
        {"good": tmp_path / "o", "bad": tmp_path / "o"},
        {"good": tmp_path / "no" / "o"},
        {"bad": tmp_path},
        {"good": tmp_path / "o.gz"},
        {"quality_json": path},
        {"json_file": tmp_path / "o", "quality_json": tmp_path / "o"},
        {"html": tmp_path / "eval", "against": (tmp_path / "eval",)},
        {"html": tmp_path / "t.toml", "quality_config": tmp_path / "t.toml"},
    ):
        with pytest.raises(OutputError) as caught:
            report_of(path, **options)
        assert caught.value.exit_code == 2
    assert path.read_bytes() == GOOD + b"\n"
    assert {entry.name for entry in tmp_path.iterdir()} == {"f", "link", "eval", "t.toml"}


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_what_stops_the_writing_leaves_the_names_as_they_were(tmp_path: Path, stop: type[BaseException]) -> None:
    target = tmp_path / "out"
    target.write_text("before")

    def interrupted() -> None:
        with publishing([target]) as publication:
            publication.files[0].write(b"half")
            raise stop

    with pytest.raises((KeyboardInterrupt, OutputError)):
        interrupted()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert target.read_text() == "before"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_full_disk_is_an_error_with_a_hint(tmp_path: Path) -> None:
    (tmp_path / f".out.{os.getpid()}.partial").symlink_to("/dev/full")
    with pytest.raises(OutputError, match="No space left"):
        report_of(write(tmp_path / "f", GOOD), good=tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"f"}


def test_the_command_prints_findings_and_writes_the_same_report_as_json(tmp_path: Path, samples: Path) -> None:
    bad = samples / "bad" / "no_assistant.jsonl"
    done = sftprep(bad, "--json", tmp_path / "report.json")
    assert done.returncode == 1
    assert f"{bad}:1:/messages: no message is the assistant's [no-assistant]" in done.stdout.decode()
    written = ValidationReport.model_validate_json((tmp_path / "report.json").read_bytes())
    assert written == report_of(bad)
    quiet = sftprep(samples / "good" / "openai.jsonl", "-q")
    assert (quiet.returncode, quiet.stdout.count(b"\n"), quiet.stderr) == (0, 1, b"")


def test_half_a_character_in_a_key_or_in_a_file_name_is_told_everywhere_m3(tmp_path: Path) -> None:
    path = write(tmp_path / os.fsdecode(b"caf\xe9.jsonl"), GOOD[:-1] + b', "x\\ud800": {"\\ud800": 1}}')
    names = [tmp_path / name for name in ("r.json", "b.jsonl", "r.html")]
    done = sftprep(path, "--json", names[0], "--bad", names[1], "--html", names[2])
    assert (done.returncode, done.stderr) == (1, b"")
    assert b":1:/x\\ud800: " in done.stdout
    report = json.loads(names[0].read_bytes())
    assert {"", "/x\ud800"} == {finding["pointer"] for finding in report["findings"]}
    assert os.fsencode(report["files"][0]["file"]) == os.fsencode(path)
    assert b"lone-surrogate" in names[1].read_bytes()
    assert b"x\\ud800" in names[2].read_bytes()


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_output_survives_a_terminal_that_lacks_the_characters_m1(tmp_path: Path, encoding: str) -> None:
    row = '{"messages": [{"role": "user", "content": "a", "潮": 1}, {"role": "assistant", "content": "b"}]}'.encode()
    done = sftprep(write(tmp_path / "f", row), PYTHONIOENCODING=encoding)
    assert done.returncode == 1
    assert b"\\u6f6e" in done.stdout
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (["no-such-file"], b"missing-file"),
        (["."], b"is-directory"),
        ([__file__, "--format", "x"], b"no-such-format"),
        ([__file__, "--fail-on", "typo"], b"no-such-code"),
        ([__file__, "--max-length", "9"], b"bad-option"),
        (["no/*.such"], b"missing-file"),
        ([__file__, "--model", "no/such"], b"model"),
    ],
)
def test_a_wrong_call_exits_with_two_and_a_hint(argv: list[str], code: bytes) -> None:
    done = sftprep(*argv)
    assert done.returncode == 2
    assert code in done.stderr
    assert b"hint:" in done.stderr
    assert b"Traceback" not in done.stderr


@pytest.mark.corpus
def test_the_real_chats_hold_two_bad_rows_and_known_oddities(corpus: Path) -> None:
    report = report_of(*sorted((corpus / "chat").glob("*.zst")), max_errors=0)
    assert report.rows_in == 32_828
    bad = [str(f.address).rsplit("/", 1)[-1] for f in report.findings if f.severity is Severity.ERROR]
    assert bad == [f"llamafactory_glaive_toolcall_zh_demo.jsonl.zst:{line}" for line in (192, 277)]
    assert report.by_code == {
        "arguments-misfit": 145,
        "bad-schema": 127,
        "consecutive-assistant": 13,
        "consecutive-user": 2,
        "control-character": 13,
        "ends-without-assistant": 5,
        "no-tools": 5,
        "replacement-character": 43,
        "reused-tool-call-id": 87,
        "unanswered-call": 16,
        "unbalanced-reasoning": 4,
        "unknown-tool-call-id": 2,
    }


@pytest.mark.corpus
def test_the_benchmark_input_is_clean_of_errors(corpus: Path) -> None:
    report = report_of(corpus / "bench" / "chat_10k.jsonl.zst")
    assert (report.rows_in, report.files[0].complete) == (10_000, True)
    assert report.num_errors == 0, report.by_code

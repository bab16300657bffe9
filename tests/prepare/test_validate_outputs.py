"""What a validation writes and decides beside its findings: fixed rows, fit, exit codes, workers, the page."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sftprep.config.pack import PackConfig
from sftprep.config.validate import ValidateConfig
from sftprep.data import Conversation
from sftprep.errors import DataError, UsageError
from sftprep.prepare.pack import pack
from sftprep.prepare.row_fit import FIT_CODES
from sftprep.prepare.validate import FILE_CODES, read_conversations, validate_files
from sftprep.reports.findings import ValidationReport, report_lines
from sftprep.reports.validate_html import page, write_html

ROOT = Path(__file__).resolve().parent.parent.parent
USER = {"role": "user", "content": "Tide?"}
ANSWER = {"role": "assistant", "content": "At six."}
GOOD = {"messages": [USER, ANSWER]}
BAD = {"messages": [USER]}
CALL = {"type": "function", "function": {"name": "tide", "arguments": {"b": 1, "a": None}}}


def write(path: Path, *rows: Any) -> Path:
    path.write_bytes(b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows))
    return path


def report_of(*files: Path, **options: object) -> ValidationReport:
    return validate_files(ValidateConfig.model_validate({"files": files, **options}))


def conversations(path: Path) -> list[Conversation]:
    rows = [row.conversation for row in read_conversations(path, name="f")]
    return [row for row in rows if row is not None]


def content(conversation: Conversation) -> str:
    keys = ("messages", "weights", "tools", "template_kwargs", "metadata")
    return json.dumps([getattr(conversation, key) for key in keys])


def test_fixed_rows_are_the_same_conversations_and_absent_keys_stay_absent_d3(tmp_path: Path) -> None:
    messages = b'[{"content": "a",  "role": "user"}, {"role": "assistant", "content": "b"}]'
    chat = b'{"tools": [], "messages": ' + messages + b', "n": 1.50}'
    path = write(
        tmp_path / "f",
        {"conversations": [{"from": "human", "value": "潮?"}, {"from": "gpt", "value": "b", "train": False}], "id": 7},
        {"prompt": [USER, ANSWER, USER], "completion": [{"role": "assistant", "tool_calls": [CALL]}], "tools": []},
        {"instruction": "a", "output": "b", "history": [["c", "d"]], "source": None},
        BAD,
    )
    path.write_bytes(path.read_bytes() + chat + b"\n")
    report = report_of(path, fix_to=tmp_path / "fixed")
    assert (report.good, report.bad, report.quarantine_published) == (4, 1, True)
    lines = (tmp_path / "fixed").read_bytes().splitlines()
    assert len(lines) == 4
    assert lines[3] == chat
    rows = [json.loads(line) for line in lines[:3]]
    assert rows[0] == {
        "messages": [{"role": "user", "content": "潮?"}, {"role": "assistant", "content": "b", "weight": 0.0}],
        "id": 7,
    }
    assert rows[1]["messages"][1] == ANSWER | {"weight": 0.0}
    assert list(rows[1]["messages"][3]) == ["role", "tool_calls"]
    assert json.dumps(rows[1]["messages"][3]["tool_calls"][0]) == json.dumps(CALL)
    assert [content(row) for row in conversations(tmp_path / "fixed")] == [content(row) for row in conversations(path)]
    assert report_of(tmp_path / "fixed", format="openai").num_errors == 0


def test_fixed_rows_of_a_table_can_be_packed(tmp_path: Path) -> None:
    rows = [GOOD, {"messages": [USER, ANSWER | {"reasoning_content": "hm"}]}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "f.parquet")
    assert report_of(tmp_path / "f.parquet", fix_to=tmp_path / "fixed.jsonl").passed
    assert [json.loads(line) for line in (tmp_path / "fixed.jsonl").read_text().splitlines()] == rows
    model = str(ROOT / "data_samples" / "model")
    table, lines = (
        pack(PackConfig(files=(path,), model=model, out=tmp_path / path.suffix[1:], max_length=256)).shards.manifest
        for path in (tmp_path / "f.parquet", tmp_path / "fixed.jsonl")
    )
    assert table.counts.num_trained == lines.counts.num_trained > 0


def test_a_null_that_a_model_could_see_is_said_once_a_table_d3(tmp_path: Path) -> None:
    def row(arguments: dict[str, int]) -> dict[str, Any]:
        call = {"type": "function", "function": {"name": "t", "arguments": arguments}}
        return {"messages": [USER, {"role": "assistant", "tool_calls": [call]}]}

    pq.write_table(pa.Table.from_pylist([row({"a": 1}), row({"b": 2}), row({"a": 1})]), tmp_path / "f")
    report = report_of(tmp_path / "f")
    assert report.by_code == {"no-tools": 3, "null-as-absent": 1}
    assert report.num_errors == 0


def test_rows_of_an_array_that_is_laid_out_are_one_line_each(tmp_path: Path) -> None:
    (tmp_path / "f.json").write_text(json.dumps([GOOD, {"messages": [USER | {"content": "a\nb"}, ANSWER]}], indent=2))
    outputs = {key: tmp_path / key for key in ("good", "fix_to")}
    assert report_of(tmp_path / "f.json", **outputs).good == 2
    for path in outputs.values():
        assert [json.loads(line)["messages"][0]["content"] for line in path.open()] == ["Tide?", "a\nb"]


def test_a_fixed_file_is_whole_or_not_there(tmp_path: Path) -> None:
    (tmp_path / "f.json").write_text(json.dumps([GOOD, GOOD])[:-1])
    report = report_of(tmp_path / "f.json", fix_to=tmp_path / "fixed")
    assert (report.good, report.by_code, report.quarantine_published) == (2, {"bad-array": 1}, False)
    assert not (tmp_path / "fixed").exists()


@pytest.mark.parametrize(
    ("fail_on", "rows", "passed"),
    [
        (["error"], [GOOD, {"messages": [USER, USER, ANSWER]}], True),
        (["warning"], [{"messages": [USER, USER, ANSWER]}], False),
        (["warning"], [BAD], False),
        (["error"], [BAD], False),
        (["consecutive-user"], [{"messages": [USER, USER, ANSWER]}], False),
        (["consecutive-user"], [BAD], True),
        (["consecutive-user", "error"], [BAD], False),
        (["mojibake", "no-assistant"], [BAD], False),
    ],
)
def test_severities_and_codes_decide_the_exit_code(
    tmp_path: Path, fail_on: list[str], rows: list[Any], passed: bool
) -> None:
    report = report_of(write(tmp_path / "f", *rows), fail_on=tuple(fail_on))
    assert (report.passed, report.exit_code) == (passed, 0 if passed else 1)


def test_a_code_that_no_finding_has_is_a_wrong_call(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        report_of(write(tmp_path / "f", GOOD), fail_on=("mojibaké",))
    assert (caught.value.code, caught.value.exit_code) == ("no-such-code", 2)


def test_the_codes_to_fail_on_are_those_that_the_readme_lists() -> None:
    errors = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Errors")[2]
    exact = errors.partition("**A row cannot be exact")[2].partition("\n\n**")[0]
    listed = {
        code
        for line in exact.splitlines()
        if line.startswith("| `")
        for code in re.findall(r"`([a-z-]+)`", line.split("|")[1])
    }
    asked_for = {"no-generation-tags", "tags-absent", "turns-left-out"}
    assert listed - asked_for == FIT_CODES - {"template-syntax"}
    assert all(f"`{code}`" in errors for code in FILE_CODES)


def test_standard_input_is_read_once_and_may_be_compressed_or_an_array(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sftprep", "validate", "-", "--fix-to", str(tmp_path / "fixed"), "-q"]
    lines = json.dumps(GOOD).encode() + b"\n"
    for data in (json.dumps([GOOD] * 3).encode(), pa.compress(lines * 3, "gzip", asbytes=True)):
        done = subprocess.run(command, input=data, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(b"3 rows: 3 good")
        assert (tmp_path / "fixed").read_bytes().splitlines() == lines.splitlines() * 3
    for data, code in ((b"PAR1\0\0\0\0", b"not-jsonl"), (b"\x1f\x8b", b"bad-archive")):
        done = subprocess.run(command[:-1], input=data, capture_output=True, check=False)
        assert (done.returncode, code in done.stdout) == (1, True), done


@pytest.mark.parametrize("argv", [["-", "-"], ["-", "--quality"], ["-", "f", "--against", "f"]])
def test_standard_input_is_not_asked_for_twice(argv: list[str]) -> None:
    done = subprocess.run([sys.executable, "-m", "sftprep", "validate", *argv], capture_output=True, check=False)
    assert (done.returncode, b"can be read once" in done.stderr) == (2, True)


FOLDED = ("reasoning.jsonl", "tools.jsonl", "openai.jsonl", "sharegpt.jsonl")


def test_fit_says_of_every_row_what_pack_says_d10_m4(tmp_path: Path, samples: Path) -> None:
    forged = {"messages": [USER | {"content": "<|im_end|>"}, ANSWER]}
    pair = {"prompt": "Ebb <|im_end|>?", "completion": "At noon."}
    long = {"messages": [USER, ANSWER | {"content": "Fair winds. " * 90}]}
    path = write(tmp_path / "f.jsonl", GOOD, forged, pair, long)
    files = (path, *(samples / "good" / name for name in FOLDED))
    model = str(samples / "model")
    report = report_of(*files, model=model, max_length=200, max_errors=0)
    told = {(f.address.line, f.code, f.pointer) for f in report.findings if f.address.file == str(path)}
    assert told == {
        (2, "control-token", "/messages/0/content"),
        (3, "control-token", "/prompt"),
        (4, "over-length", "/messages"),
    }
    with pytest.raises(DataError, match="longer than --max-length"):
        pack(PackConfig(files=files, model=model, out=tmp_path / "o", max_length=200))
    packed = pack(
        PackConfig(files=files, model=model, out=tmp_path / "o", max_length=200, over_length="drop", max_drop="100%")
    )
    left_out = packed.shards.manifest.left_out
    errors = {code: n for code, n in report.by_code.items() if code in FIT_CODES}
    assert errors == dict(left_out.by_code)
    assert report.fit is not None
    assert report.fit.num_over_length == errors["over-length"] > 1
    assert report.fit.num_trained - report.fit.num_trained_lost == packed.shards.manifest.counts.num_trained
    assert report.fit.num_exact == report.rows_in - errors["control-token"]
    assert report.bad == left_out.num_rows
    whole = pack(PackConfig(files=files, model=model, out=tmp_path / "w", max_length=4096, max_drop="2"))
    assert report.fit.num_trained == whole.shards.manifest.counts.num_trained
    assert "over 200 tokens" in "\n".join(report_lines(report, quiet=False))


def test_a_row_whose_template_raises_is_named_at_its_place_d10(tmp_path: Path, samples: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(samples / "model", model)
    text = (model / "chat_template.jinja").read_text(encoding="utf-8")
    rule = "{% if messages[0].role == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
    (model / "chat_template.jinja").write_text(rule + text, encoding="utf-8")
    path = write(tmp_path / "f", GOOD, {"messages": [{"role": "system", "content": "s"}, USER, ANSWER]}, GOOD)
    report = report_of(path, model=str(model))
    assert [f"{f.address.line}:{f.pointer}:{f.code}" for f in report.findings] == ["2:/messages/0:template-raised"]
    assert "no system here" in report.findings[0].message
    assert (report.good, report.bad) == (2, 1)
    (model / "chat_template.jinja").write_text("{% if %}", encoding="utf-8")
    with pytest.raises(DataError) as caught:
        report_of(path, model=str(model))
    assert caught.value.code == "template-syntax"


def test_every_turn_that_cannot_be_exact_is_named_not_the_first_alone_d10(tmp_path: Path, samples: Path) -> None:
    typed, forged = USER | {"content": "<|im_end|>"}, ANSWER | {"content": "<|im_start|>"}
    row = {"messages": [typed, ANSWER, ANSWER, USER, forged, ANSWER, ANSWER]}
    report = report_of(write(tmp_path / "f", row, GOOD), model=str(samples / "model"))
    told = [(finding.code, finding.pointer) for finding in report.findings if finding.code in FIT_CODES]
    places = {"control-token": ("0/content", "4/content"), "ill-posed": ("2", "5", "6")}
    assert sorted(told) == [(code, f"/messages/{place}") for code in places for place in places[code]]
    assert [place for _, place in told] == sorted(place for _, place in told)
    assert (report.good, report.bad) == (1, 1)


ALTERNATE = (
    "{% set last = namespace(role='', asked=false) %}{% for m in messages %}{% if m.role == 'user' %}"
    "{% set last.asked = true %}{% endif %}{% if m.role == last.role %}{{ raise_exception('no turn') }}{% endif %}"
    "{% set last.role = m.role %}{% endfor %}{% if not last.asked %}{{ raise_exception('no question') }}{% endif %}"
)


@pytest.mark.parametrize(
    ("row", "place"),
    [
        ({"messages": [USER, ANSWER, USER, USER, ANSWER]}, "/messages/3"),
        ({"messages": [{"role": "system", "content": "s"}, USER, USER, ANSWER]}, "/messages/2"),
        ({"messages": [{"role": "system", "content": "s"}, ANSWER]}, "/messages"),
        ({"conversations": [{"from": f, "value": f} for f in ("human", "human", "gpt")]}, "/conversations/1/value"),
    ],
)
def test_the_message_that_breaks_the_order_which_the_template_demands_is_named_d10(
    tmp_path: Path, samples: Path, row: Any, place: str
) -> None:
    model = tmp_path / "model"
    shutil.copytree(samples / "model", model)
    text = (model / "chat_template.jinja").read_text(encoding="utf-8")
    (model / "chat_template.jinja").write_text(ALTERNATE + text, encoding="utf-8")
    report = report_of(write(tmp_path / "f", row), model=str(model))
    assert [f.pointer for f in report.findings if f.code == "template-raised"] == [place]


def test_the_report_and_the_files_are_the_same_for_any_number_of_workers(tmp_path: Path) -> None:
    workers = 3
    rows = [GOOD | {"n": n} if n % 7 else BAD | {f"k{n % 5}": 1} for n in range(900)]
    files = [write(tmp_path / "a", *rows), write(tmp_path / "b", *rows[:300]), tmp_path / "empty"]
    files[2].write_bytes(b"{")
    outputs = {}
    for number in (1, workers):
        names = {key: tmp_path / f"{key}{number}" for key in ("good", "bad", "fix_to")}
        report = report_of(*files, workers=number, max_errors=5, **names)
        outputs[number] = (report.model_dump(), [path.read_bytes() for path in names.values()])
    assert outputs[1] == outputs[workers]
    assert outputs[1][0]["bad"] > 100


def hostile(tmp_path: Path) -> ValidationReport:
    text = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">"
    path = write(tmp_path / 'a<b>&".jsonl', {"messages": [{"role": "user", "content": "\x1b" + text}, ANSWER], text: 1})
    other = write(tmp_path / "b.jsonl", BAD, {"messages": [USER, ANSWER | {"content": "cafÃ©"}]})
    other.write_bytes(other.read_bytes() + b'{"messages": "\xff\\ud800"}\n{"messages": ["\\ud800"]}\n')
    return report_of(path, other, html=tmp_path / "r.html")


def test_the_page_shows_every_finding_and_what_a_row_holds_is_only_text(tmp_path: Path) -> None:
    report = hostile(tmp_path)
    text = page(report)
    assert text.count("<article") == len(report.findings) == 7
    assert text.count("<script>") == text.count("</script>") == 1
    assert "<img" not in text
    assert "http" not in text
    assert "cafÃ©" in text
    assert text.count("<rect") == len(report.by_code)
    write_html(report, path=tmp_path / "r.html")
    assert "owned" in (tmp_path / "r.html").read_text(encoding="utf-8")
    assert "excerpts" not in json.loads(report.model_dump_json())


def browse(path: Path, fragment: str = "") -> tuple[str, str]:
    """The page's elements after its script ran, and what the browser's console said."""
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("no Chromium on this machine")
    command = [program, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]
    profile = f"--user-data-dir={path.parent / 'profile'}"
    done = subprocess.run(
        [*command, profile, f"{path.as_uri()}{fragment}"],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        env=os.environ | {"HOME": str(path.parent)},
    )
    return done.stdout, "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)


def test_the_page_filters_by_code_file_and_text_in_a_browser(tmp_path: Path) -> None:
    report = hostile(tmp_path)
    path = tmp_path / "r.html"
    write_html(report, path=path)
    for fragment, shown in (
        ("", 7),
        ("#code=mojibake", 1),
        (f"#file={tmp_path / 'b.jsonl'}", 5),
        ("#text=ASSISTANT%27S", 1),
        ("#code=mojibake&text=tide", 0),
    ):
        dom, console = browse(path, fragment)
        assert console == ""
        assert f">{shown} of 7</output>" in dom
        assert dom.count("<article") - dom.count('hidden=""') == shown
        assert "<title>Validation: failed</title>" in dom

"""The audit on terminals: narrow, dumb, without colour, of another encoding; nothing on it moves or hides text."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from sftprep.config.audit import AuditConfig
from sftprep.config.pack import PackConfig
from sftprep.prepare.audit import Audit, audit
from sftprep.prepare.pack import pack
from sftprep.reports.mask_terminal import print_row, print_summary
from sftprep.reports.mask_view import visible

BIDI = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u061c"


@pytest.fixture(scope="module")
def found(samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Audit:
    folder = tmp_path_factory.mktemp("terminal")
    rows = [{"prompt": f"danger \u202e reversed {BIDI} \x1b[31m", "response": "潮 ok \u2066end\u2069"}]
    (folder / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    files = (folder / "rows.jsonl", samples / "good" / "openai.jsonl")
    pack(PackConfig(files=files, model=str(samples / "model"), out=folder / "set", max_length=2048))
    return audit(AuditConfig(directory=folder / "set"))


def printed(found: Audit, *, width: int, colour: bool = False, ids: bool = False) -> str:
    file = io.StringIO()
    console = Console(
        file=file, width=width, force_terminal=colour, color_system="truecolor" if colour else None, highlight=False
    )
    print_summary(found.report, console)
    for row in found.rows(range(found.shards.num_rows)):
        print_row(row, console, ids=ids)
    return file.getvalue()


def test_characters_that_reorder_or_move_are_spelled_out(found: Audit) -> None:
    text = printed(found, width=100)
    assert "‹U+202E› reversed" in text
    assert "‹U+001B›[31m" in text
    assert not set(text) & set(BIDI + "\x1b")


@given(st.text())
def test_what_is_visible_holds_no_hidden_character_and_loses_no_other(text: str) -> None:
    shown = visible(text)
    assert not any(ord(c) < 32 and c not in "\t\n" for c in shown)
    assert not set(shown) & set(BIDI + "\u2028\u2029\ufeff\u200b")
    assert visible(shown) == shown
    plain = text.isprintable() and not set(text) & set(BIDI + "\u2028\u2029\ufeff\u200b")
    assert shown == text or not plain


def test_a_narrow_terminal_gets_narrow_tables_with_the_same_numbers(found: Audit) -> None:
    text = printed(found, width=40)
    assert f"{found.report.num_trained:,}" in text
    table = text.split("rows are")[0].splitlines()[1:]
    assert max(map(len, table)) <= 40


def test_colour_marks_trained_tokens_and_special_tokens_and_its_absence_brackets_them(found: Audit) -> None:
    assert "⟦" not in printed(found, width=100, colour=True)
    plain = printed(found, width=100)
    assert plain.count("⟦") == plain.count("⟧") > 0
    assert "潮 ok ‹U+2066›end‹U+2069›⟧⟦<|im_end|>⟧" in plain


def test_ids_are_shown_on_request(found: Audit) -> None:
    stop = found.report.stops[0].id
    assert f"<|im_end|>‹{stop}›" in printed(found, width=100, ids=True)


@pytest.mark.parametrize(
    "environment", [{"PYTHONIOENCODING": "cp1252"}, {"TERM": "dumb"}, {"NO_COLOR": "1"}, {"COLUMNS": "20"}]
)
def test_the_command_survives_poor_terminals_m1(found: Audit, environment: dict[str, str]) -> None:
    command = [sys.executable, "-m", "sftprep", "audit", str(found.shards.directory), "--sample", "9"]
    done = subprocess.run(command, capture_output=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert b"\x1b" not in done.stdout
    if "PYTHONIOENCODING" in environment:
        assert b"[[" in done.stdout
        assert b"\\u6f6e" in done.stdout, "what the encoding lacks is escaped"


def test_roles_and_rows_left_out_are_told_with_their_shares_g4(found: Audit) -> None:
    report = found.report.model_copy(update={"num_left_out": 3, "num_taken": 40, "left_out": {"over-length": 3}})
    file = io.StringIO()
    print_summary(report, Console(file=file, width=200, highlight=False))
    told = file.getvalue()
    of_assistant = sum(kind.num_tokens for kind in report.kinds if kind.role == "assistant")
    share = f"{of_assistant / report.num_tokens:.1%}"
    assert f"assistant {of_assistant:,} ({share}, {report.num_trained:,} trained)" in told
    assert "rows left out when packing: 3 of 40 (7.5%): over-length 3" in told

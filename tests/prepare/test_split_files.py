"""Splits: every row once, as it came; near duplicates on one side; the same for the same seed; all or nothing."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from sftprep.config.quality import QualityConfig
from sftprep.config.split import SplitConfig
from sftprep.errors import DataError, OutputError
from sftprep.prepare.quality import measure_quality
from sftprep.prepare.split import split
from sftprep.reports.quality_split import SplitReport, print_split


def prose(seed: int, count: int = 30) -> str:
    return " ".join(f"w{(seed * 7919 + i * 104729) % 99991}" for i in range(count))


def chat(prompt: str, answer: str) -> bytes:
    messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    return json.dumps({"messages": messages}).encode()


def write(path: Path, rows: list[bytes]) -> Path:
    path.write_bytes(b"".join(row + b"\n" for row in rows))
    return path


def run(path: Path, out: Path, **options: object) -> SplitReport:
    return split(SplitConfig.model_validate({"files": (path,), "out": out, **options}))


def lines(path: Path) -> list[bytes]:
    return path.read_bytes().split(b"\n")[:-1]


ROWS = [chat(f"{prose(i // 3)} {i % 3}", prose(1000 + i)) for i in range(120)]


def test_every_row_is_in_one_part_as_it_came_and_in_order(tmp_path: Path) -> None:
    odd = [b'{"messages":[{"role":"user","content":"a\\u00e9"},{"role":"assistant","content":"b"}],  "id" : 1e0}']
    report = run(write(tmp_path / "f", ROWS + odd), tmp_path / "out", held_out="10%")
    train, held = lines(tmp_path / "out" / "train.jsonl"), lines(tmp_path / "out" / "eval.jsonl")
    assert (len(train), len(held), report.num_rows) == (report.num_train, report.num_eval, 121)
    order = {row: number for number, row in enumerate(ROWS + odd)}
    assert sorted(train + held, key=order.__getitem__) == ROWS + odd
    assert [order[row] for row in train] == sorted(order[row] for row in train)
    assert 9 <= report.num_eval <= report.num_asked == 12
    written = SplitReport.model_validate_json((tmp_path / "out" / "split.json").read_bytes())
    assert written == report


def test_items_of_an_array_become_lines(tmp_path: Path) -> None:
    rows = [json.loads(row) for row in ROWS]
    (tmp_path / "f.json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
    run(tmp_path / "f.json", tmp_path / "out")
    written = lines(tmp_path / "out" / "train.jsonl") + lines(tmp_path / "out" / "eval.jsonl")
    assert sorted(map(str, map(json.loads, written))) == sorted(map(str, rows))


def test_near_duplicates_are_never_on_both_sides(tmp_path: Path) -> None:
    report = run(write(tmp_path / "f", ROWS), tmp_path / "out", held_out="20%")
    held = {ROWS.index(row) // 3 for row in lines(tmp_path / "out" / "eval.jsonl")}
    train = {ROWS.index(row) // 3 for row in lines(tmp_path / "out" / "train.jsonl")}
    assert held
    assert not held & train
    assert (report.num_clusters, report.largest_cluster, report.num_leaks) == (40, 3, 0)


def test_long_ngrams_on_both_sides_are_counted_as_a_comparison_of_the_parts_counts_them(tmp_path: Path) -> None:
    # Rows n and n + 20 quote the same twenty words in answers that have nothing else in common.
    rows = [chat(prose(n), f"{prose(500 + n, 80)} {prose(900 + n % 20, 20)} {prose(700 + n, 80)}") for n in range(40)]
    report = run(write(tmp_path / "f", rows), tmp_path / "out", held_out="30%")
    train, held = lines(tmp_path / "out" / "train.jsonl"), lines(tmp_path / "out" / "eval.jsonl")
    apart = [row for row in held if rows[(rows.index(row) + 20) % 40] in train]
    assert (report.num_clusters, report.ngram, report.num_overlapping) == (40, 13, len(apart))
    assert 0 < len(apart) < len(held)
    parts = {"files": (tmp_path / "out" / "train.jsonl",), "against": (tmp_path / "out" / "eval.jsonl",)}
    leakage = measure_quality(QualityConfig(**parts)).leakage
    assert leakage is not None
    assert (leakage.num_overlapping, leakage.num_near_duplicates) == (report.num_overlapping, 0)
    printed = io.StringIO()
    print_split(report, Console(file=printed, width=200))
    assert f"{len(apart)} held-out rows share 13-grams" in printed.getvalue()


def test_on_demand_nothing_that_a_comparison_of_the_parts_finds_is_on_both_sides(tmp_path: Path) -> None:
    quoting = [chat(prose(n), f"{prose(500 + n, 80)} {prose(900 + n % 20, 20)}") for n in range(40)]
    alone = [chat(prose(200 + n), prose(2000 + n, 80)) for n in range(40)]
    rows = [row for pair in zip(quoting, alone, strict=True) for row in pair]
    report = run(write(tmp_path / "f", rows), tmp_path / "out", held_out="20", no_overlap=True)
    train, held = lines(tmp_path / "out" / "train.jsonl"), lines(tmp_path / "out" / "eval.jsonl")
    assert sorted(train + held) == sorted(rows)
    assert 10 <= report.num_eval <= 20
    assert (len(held), report.num_overlapping) == (report.num_eval, 0)
    assert report.num_barred > 4
    parts = {"files": (tmp_path / "out" / "train.jsonl",), "against": (tmp_path / "out" / "eval.jsonl",)}
    leakage = measure_quality(QualityConfig(**parts)).leakage
    assert leakage is not None
    assert leakage.leaks == []
    printed = io.StringIO()
    print_split(report, Console(file=printed, width=200))
    assert f"{report.num_barred} rows were not held out" in printed.getvalue()
    with pytest.raises(DataError) as caught:
        run(write(tmp_path / "g", [quoting[0], quoting[20]]), tmp_path / "other", held_out="1", no_overlap=True)
    assert (caught.value.code, "--no-overlap" in caught.value.hint) == ("nothing-to-hold-out", True)


def test_the_exact_check_joins_what_the_clusters_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import numpy as np

    monkeypatch.setattr("sftprep.prepare.split.list_clusters", lambda config, on_bytes: np.arange(len(ROWS)))
    report = run(write(tmp_path / "f", ROWS), tmp_path / "out", held_out="20%")
    held = {ROWS.index(row) // 3 for row in lines(tmp_path / "out" / "eval.jsonl")}
    train = {ROWS.index(row) // 3 for row in lines(tmp_path / "out" / "train.jsonl")}
    assert not held & train
    assert report.num_merged > 0


def test_the_seed_decides_and_nothing_else(tmp_path: Path) -> None:
    path = write(tmp_path / "f", ROWS)
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run(path, tmp_path / name, seed=seed)
    a, b, c = ((tmp_path / name / "eval.jsonl").read_bytes() for name in "abc")
    assert a == b != c


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(0, 6), min_size=2, max_size=30), st.integers(0, 3), st.integers(1, 12))
def test_any_rows_are_split_without_loss_or_refused(
    tmp_path_factory: pytest.TempPathFactory, groups: list[int], seed: int, asked: int
) -> None:
    folder = tmp_path_factory.mktemp("s")
    rows = [chat(prose(group), f"answer {number}") for number, group in enumerate(groups)]
    path = write(folder / "f", rows)
    refused = None
    try:
        run(path, folder / "out", held_out=str(asked), seed=seed)
    except DataError as error:
        refused = error.code
    if refused is not None:
        assert refused == "nothing-to-hold-out"
        assert {entry.name for entry in folder.iterdir()} == {"f"}
        return
    held = [rows.index(row) for row in lines(folder / "out" / "eval.jsonl")]
    train = [rows.index(row) for row in lines(folder / "out" / "train.jsonl")]
    assert sorted(held + train) == list(range(len(rows)))
    assert 0 < len(held) <= asked
    assert not {groups[n] for n in held} & {groups[n] for n in train}


def test_what_cannot_be_split_leaves_nothing_behind(tmp_path: Path) -> None:
    path = write(tmp_path / "f", [*ROWS[:5], b'{"messages": []}'])
    with pytest.raises(DataError) as caught:
        run(path, tmp_path / "out")
    assert (caught.value.code, caught.value.place) == ("bad-rows", f"{path}:6")
    same = write(tmp_path / "g", [chat(prose(1), prose(2))] * 30)
    with pytest.raises(DataError) as caught:
        run(same, tmp_path / "out")
    assert caught.value.code == "nothing-to-hold-out"
    assert {entry.name for entry in tmp_path.iterdir()} == {"f", "g"}


def test_a_directory_in_use_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("kept")
    with pytest.raises(OutputError) as caught:
        run(write(tmp_path / "f", ROWS), tmp_path / "out")
    assert (caught.value.code, caught.value.exit_code) == ("output-not-empty", 2)
    assert [entry.name for entry in (tmp_path / "out").iterdir()] == ["mine"]


def test_a_failing_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sftprep.prepare.split._write_bytes", fail)
    with pytest.raises(OutputError, match="No space left"):
        run(write(tmp_path / "f", ROWS), tmp_path / "out")
    assert {entry.name for entry in tmp_path.iterdir()} == {"f"}


@pytest.mark.parametrize("held_out", ["0", "0%", "100%", "-3", "five", "5.%"])
def test_a_share_that_makes_no_sense_is_refused(held_out: str) -> None:
    with pytest.raises(ValueError, match="number of rows"):
        SplitConfig(files=(Path("f"),), out=Path("o"), held_out=held_out)


def test_the_command_splits_and_refuses_a_wrong_call(tmp_path: Path) -> None:
    path = write(tmp_path / "f", ROWS)
    command = [sys.executable, "-m", "sftprep", "split", str(path), "--out", str(tmp_path / "out")]
    done = subprocess.run([*command, "--eval", "10%", "--seed", "3"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "exact check: 0 near duplicates across the border" in done.stdout.replace("\n", " ")
    wrong = subprocess.run([*command, "--eval", "none"], capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    assert "--eval" in wrong.stderr
    assert "Traceback" not in wrong.stderr


@pytest.mark.corpus
def test_real_rows_with_shared_prompts_are_split_without_a_leak(corpus: Path, tmp_path: Path) -> None:
    name = corpus / "chat" / "fastchat_dummy_conversation.jsonl.zst"
    report = run(name, tmp_path / "out", held_out="10%")
    assert report.num_rows == 500
    assert 0 < report.num_eval <= 50
    assert (report.num_leaks, len(lines(tmp_path / "out" / "eval.jsonl"))) == (0, report.num_eval)

"""The benchmark that has minutes of a card: what it knows it says at once, and what takes too long is left out."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "h100.py"


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("h100", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["h100"] = module
    spec.loader.exec_module(module)
    return module


def case(name: str, **values: Any) -> str:
    return json.dumps({"case": name, **values})


def test_a_line_is_told_while_its_case_still_runs(bench: ModuleType, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "gate")
    ours = case(bench.BASE, **{"ms a step": 2.0, "tokens a second": 100, "peak GiB": 30.0})
    shell = f"echo '{ours}'; cat {tmp_path / 'gate'} > /dev/null; echo '{case('later')}'; exit 3"
    setting = bench.Setting(tiny=True, place=tmp_path)
    found = bench.results(setting, ["ours"], command=lambda *_: ["sh", "-c", shell])
    assert json.loads(next(found))["tokens a second"] == 100
    (tmp_path / "gate").write_text("on")
    assert json.loads(next(found)) == {"case": "later"}
    assert next(found).startswith("ours: failed")


def test_what_takes_too_long_is_ended_and_the_next_case_is_run(bench: ModuleType, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "gate")
    assert list(bench.lines_of(["cat", str(tmp_path / "gate")], seconds=0.2)) == ["more than 0 s"]
    assert list(bench.lines_of(["sh", "-c", f"echo '{case('next')}'"], seconds=600)) == [case("next")]


def test_cases_for_which_no_time_is_left_are_named(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "ALL_SECONDS", 0)
    setting = bench.Setting(tiny=False, place=tmp_path)
    assert list(bench.results(setting, ["ours", "adapters"])) == [
        "ours: left out, 0 s are left",
        "adapters: left out, 0 s are left",
    ]


def test_each_line_is_compared_with_ours_once_that_is_known(bench: ModuleType) -> None:
    base: dict[str, Any] = {}
    measured = {"ms a step": 2.0, "tokens a second": 300, "peak GiB": 30.0}
    bench.compared(case(bench.BASE, **measured), base)
    found = json.loads(bench.compared(case("TRL", **{"tokens a second": 200, "peak GiB": 40.0}), base))
    assert (found["sftprep train to it"], found["its memory"]) == (1.5, 0.75)


@pytest.mark.slow
def test_toys_go_through_the_same_code_on_a_cpu() -> None:
    command = [sys.executable, str(SCRIPT), "--tiny", "--only", "ours-eager", "ours", "profile"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    measured = {line["case"]: line for line in lines if "ms a step" in line}
    assert len(measured) == 2
    assert all(line["ms a step"] > 0 for line in measured.values())
    assert sum("kernel" in line for line in lines) > 5
    assert "failed" not in done.stdout

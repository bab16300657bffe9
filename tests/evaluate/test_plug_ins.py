"""Scorers of another package: one that pip really installed, and what goes wrong with them is named."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter
from typer.testing import CliRunner

from sftprep.cli.app import app
from sftprep.errors import SourceError, UsageError
from sftprep.evaluate import plug_ins
from sftprep.evaluate.answer import Answer, Score
from sftprep.evaluate.score import score
from sftprep.evaluate.scorer_specs import ScorerSpec
from sftprep.evaluate.suite import read_suite

SPEC: TypeAdapter[Any] = TypeAdapter(ScorerSpec)
SOURCE = """
from sftprep.evaluate.answer import Score


def short(answer, options):
    found = len(answer.text)
    return Score(1 / (1 + found), found <= options["most"], f"{found} characters")


def number(answer, options):
    return 0.5


def beyond(answer, options):
    return Score(2.0, True)


def broken(answer, options):
    raise KeyError("nothing")
"""
ENTRIES = {name: f"harbour_scorers:{name}" for name in ("short", "number", "beyond", "broken")}
ENTRIES |= {"gone": "harbour_scorers:absent", "unimportable": "no_such_module_at_all:x"}


def wheel(place: Path) -> Path:
    """A package with scorers as entry points, as a build tool would write it."""
    info = "harbour_scorers-1.0.dist-info"
    entries = "\n".join(f"{name} = {value}" for name, value in ENTRIES.items())
    files = {
        "harbour_scorers.py": SOURCE,
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: harbour-scorers\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": f"[{plug_ins.ENTRY_POINTS}]\n{entries}\n",
    }
    record = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"])
    path = place / "harbour_scorers-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in {**files, f"{info}/RECORD": record}.items():
            archive.writestr(name, text)
    return path


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where pip installed the package."""
    place = tmp_path_factory.mktemp("plug-in")
    options = ["--quiet", "--no-index", "--no-deps", "--disable-pip-version-check", "--target", str(place / "site")]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, str(wheel(place))], check=True)
    return place / "site"


@pytest.fixture
def installed(target: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(target)
    plug_ins.plug_in.cache_clear()
    yield
    plug_ins.plug_in.cache_clear()
    sys.modules.pop("harbour_scorers", None)


def scored(name: str, text: str, **options: Any) -> Score:
    spec = SPEC.validate_python({"kind": "plug-in", "name": name, "options": options})
    return score(spec, Answer(text, 1, True))


@pytest.mark.usefixtures("installed")
def test_an_installed_package_scores_by_the_options_of_the_suite() -> None:
    assert scored("short", "ab", most=2) == Score(1 / 3, True, "2 characters")
    assert not scored("short", "abc", most=2).passed


@pytest.mark.usefixtures("installed")
def test_an_evaluation_asks_the_plug_in_and_its_verdict_decides(
    tiny_model: Path, write_suite: Callable[..., str], tmp_path: Path
) -> None:
    for most, exit_code in ((10_000, 0), (-1, 1)):
        scorer = {"kind": "plug-in", "name": "short", "options": {"most": most}}
        case = {"id": "a", "tags": ["harbour"], "messages": [{"role": "user", "content": "Open?"}], "scorers": [scorer]}
        options = ["--model", str(tiny_model), "--suite", write_suite([case]), "--threads", "1"]
        report = tmp_path / "report.json"
        found = CliRunner().invoke(
            app, ["evaluate", *options, "--fail-on", "pass-rate=1", "--json", str(report), "--max-new-tokens", "4"]
        )
        assert found.exit_code == exit_code, found.output
        (told,) = json.loads(report.read_bytes())["cases"][0]["answer"]["scores"]
        assert told["kind"] == "plug-in"
        assert told["note"].endswith(" characters")


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("name", "what"),
    [("number", "no Score"), ("beyond", "from 0 to 1"), ("broken", "failed: KeyError: 'nothing'")],
)
def test_a_plug_in_that_gives_no_score_is_named(name: str, what: str) -> None:
    with pytest.raises(UsageError, match=what) as caught:
        scored(name, "x")
    assert caught.value.code == "bad-score"
    assert repr(name) in caught.value.message


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("name", ["gone", "unimportable", "not-there"])
def test_a_plug_in_that_is_not_there_is_named_with_its_case_before_a_model_is_opened(
    name: str, write_suite: Callable[..., str]
) -> None:
    scorer = {"kind": "plug-in", "name": name}
    case = {"id": "a", "tags": ["harbour"], "messages": [{"role": "user", "content": "Open?"}], "scorers": [scorer]}
    with pytest.raises(SourceError, match=f"scorer.*{name}") as caught:
        read_suite(write_suite([case]))
    assert (caught.value.code, caught.value.place[-16:]) == ("bad-case", "/harbour.jsonl:1")
    with pytest.raises(UsageError) as direct:
        plug_ins.plug_in(name)
    assert direct.value.code == "no-such-scorer"

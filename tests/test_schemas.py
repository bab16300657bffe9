"""The committed JSON Schemas are those of the models, and real files of ours fit them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sftprep.cli.app import app
from sftprep.cli.schema import schema_texts

ROOT = Path(__file__).resolve().parent.parent
REGENERATE = "regenerate with: sftprep schema --out schemas"


def test_the_committed_schemas_are_those_of_the_models() -> None:
    committed = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "schemas").glob("*.json")}
    generated = {f"{name}.schema.json": text for name, text in schema_texts().items()}
    assert committed.keys() == generated.keys(), REGENERATE
    assert [name for name in generated if committed[name] != generated[name]] == [], REGENERATE


@pytest.mark.parametrize("name", sorted(schema_texts()))
def test_every_field_of_a_configuration_says_what_it_is(name: str) -> None:
    properties = json.loads(schema_texts()[name])["properties"]
    assert properties
    if name.endswith("-config"):
        assert [key for key, value in properties.items() if not value.get("description")] == []


def test_the_command_writes_the_committed_files(tmp_path: Path) -> None:
    assert CliRunner().invoke(app, ["schema", "--out", str(tmp_path)]).exit_code == 0
    written = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert written == {path.name: path.read_bytes() for path in (ROOT / "schemas").glob("*.json")}


def test_the_command_lists_and_prints() -> None:
    names = CliRunner().invoke(app, ["schema"]).output.split()
    assert "manifest" in names
    printed = CliRunner().invoke(app, ["schema", "manifest"]).output
    assert json.loads(printed)["title"] == "Manifest"


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    error = CliRunner().invoke(app, ["schema", "manifets"]).exception
    assert getattr(error, "code", "") == "unknown-schema"
    assert "manifest" in str(error)

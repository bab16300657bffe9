"""A tokenizer whose library breaks down on a text ends the command with a name, in this process and in its children."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from sftprep.cli.app import main
from sftprep.engines.panics import named_panics
from sftprep.errors import DataError

END = "<|im_end|>"
BREAKING = f"{END} \n\n<"


@pytest.fixture(scope="module")
def model(samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose stop token takes the white space behind it, of which another added token is made."""
    out = tmp_path_factory.mktemp("model") / "model"
    shutil.copytree(samples / "model", out)
    file, template = out / "tokenizer.json", out / "chat_template.jinja"
    parts = json.loads(file.read_text(encoding="utf-8"))
    for token in parts["added_tokens"]:
        token["rstrip"] = token["content"] == END
    number = 1 + max([*parts["model"]["vocab"].values(), *(token["id"] for token in parts["added_tokens"])])
    space = {**parts["added_tokens"][0], "id": number, "content": " \n", "special": False, "lstrip": True}
    parts["added_tokens"].append(space)
    file.write_text(json.dumps(parts), encoding="utf-8")
    template.write_text(template.read_text(encoding="utf-8").replace(f"{END}\\n", f"{END} \\n\\n"), encoding="utf-8")
    with pytest.raises(BaseException, match="bad split") as caught:
        Tokenizer.from_file(str(file)).encode(BREAKING)
    assert not isinstance(caught.value, Exception), "the library mended it: a newer one needs no name for it"
    return out


@pytest.mark.parametrize("command", ["validate", "validate --workers 2", "pack", "pack --no-plans", "pack --workers 2"])
def test_a_tokenizer_that_breaks_down_is_named(command: str, model: Path, samples: Path, tmp_path: Path) -> None:
    words = [*command.split(), str(samples / "good" / "openai.jsonl"), "--model", str(model), "--max-length", "512"]
    words += ["--out", str(tmp_path / "out")] if "pack" in words else []
    done = subprocess.run(
        [sys.executable, "-m", "sftprep", *words], capture_output=True, text=True, check=False, cwd=samples.parent
    )
    assert done.returncode == 1, done.stderr
    assert "broke down on a text: AddedVocabulary bad split [tokenizer-failed]" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_library_that_breaks_down_elsewhere_ends_the_command_with_a_name_too(
    model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    monkeypatch.setattr("sftprep.cli.app.app", lambda: tokenizer.encode(BREAKING))
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 1
    assert "[tokenizer-failed]" in capsys.readouterr().err


@pytest.mark.parametrize("raised", [KeyboardInterrupt(), SystemExit(3), ValueError("x"), DataError("y", code="z")])
def test_whatever_else_ends_the_call_is_what_it_was(raised: BaseException) -> None:
    with pytest.raises(type(raised)) as caught, named_panics():
        raise raised
    assert caught.value is raised

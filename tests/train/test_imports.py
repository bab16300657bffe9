"""The start of a run imports what it uses: half a second of a resumption that may take five (J3)."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from sftprep.train import imports

STARTED = """
import json, sys
from sftprep.train import imports

imports._IDLE = (*imports._IDLE, "idle_by_then")
sys.modules["idle_by_then"] = sys
if sys.argv[1] == "as it is":
    import transformers, sftprep.train.run
else:
    with imports.without_detours():
        import sftprep.train.run
from transformers.utils import import_utils
listed = import_utils.create_import_structure_from_path.cache_info()
found = {"imported": [name for name in ("scipy", "boto3") if name in sys.modules], "misses": listed.misses}
found["kept"] = sys.modules["idle_by_then"] is sys
import scipy.optimize, boto3
from transformers import AutoModelForCausalLM, LlamaConfig
shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 8}
found["model"] = type(AutoModelForCausalLM.from_config(LlamaConfig(**shape))).__name__
print(json.dumps(found))
"""


def started(how: str) -> dict[str, Any]:
    command = [sys.executable, "-c", STARTED, how]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.slow
def test_a_run_imports_no_idle_package_and_lists_models_once_and_all_still_work() -> None:
    pytest.importorskip("boto3")
    found, before = started("without detours"), started("as it is")
    assert before["imported"] == ["scipy", "boto3"], "transformers no longer imports them: there is nothing to spare"
    assert found["imported"] == []
    assert found["misses"] <= before["misses"] / 1.9
    assert found["kept"]
    assert found["model"] == before["model"] == "LlamaForCausalLM"


ASKED = """
import sys
from sftprep.cli.app import main
sys.argv = ["sftprep", "evaluate", "--model", "nowhere", "--suite", "no-such.yaml"]
try:
    main()
except SystemExit as stop:
    assert stop.code == 2, stop.code
assert "sftprep.evaluate.run" in sys.modules
print([name for name in ("scipy", "sklearn", "boto3") if name in sys.modules])
"""


@pytest.mark.slow
def test_an_evaluation_imports_no_idle_package_either() -> None:
    done = subprocess.run([sys.executable, "-c", ASKED], capture_output=True, text=True, check=True)
    assert "no-such.yaml: there is no such file [missing-file]" in done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_idle_packages_are_absent_inside_only_and_stay_where_somebody_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imports, "_IDLE", ("wave", "json"))
    monkeypatch.delitem(sys.modules, "wave", raising=False)
    with imports._absent():
        with pytest.raises(ModuleNotFoundError):
            import wave  # here, where it must fail
        assert sys.modules["json"] is json
    import wave  # here, where it must not

    assert wave.open

"""A packed set whose masks were changed, as a tool that guesses them would write it, fails the gate `provenance`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from sftprep.config.evaluate import EvaluateConfig
from sftprep.config.pack import PackConfig
from sftprep.evaluate.run import evaluate
from sftprep.prepare.pack import pack
from tests.evaluate.damage import Row, remasked, unchanged, with_prompts, without_stops


@pytest.mark.parametrize(
    ("mask", "code"), [(unchanged, ""), (with_prompts, "other-role-trained"), (without_stops, "stop-untrained")]
)
def test_the_audit_of_the_set_that_a_model_was_trained_on_is_a_gate(
    *,
    mask: Callable[[Row], list[int]],
    code: str,
    tiny_model: Path,
    samples: Path,
    write_suite: Callable[..., str],
    tmp_path: Path,
) -> None:
    rows = samples / "good" / "tools.jsonl"
    pack(PackConfig(files=(rows,), model=str(tiny_model), out=tmp_path / "set", max_length=512))
    damaged = remasked(tmp_path / "set", tmp_path / "damaged", mask)
    ask = {
        "id": "a",
        "tags": ["harbour"],
        "messages": [{"role": "user", "content": "Open?"}],
        "scorers": [{"kind": "repetition"}],
    }
    config = EvaluateConfig(
        model=str(tiny_model), suite=(write_suite([ask]),), trained_on=damaged, max_new_tokens=2, threads=1
    )
    found = {gate.gate: gate for gate in evaluate(config).gates}
    assert found["parity"].passed
    assert found["provenance"].passed is not bool(code)
    assert code in found["provenance"].what

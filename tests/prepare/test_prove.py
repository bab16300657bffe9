"""The parity certificate: proven only where every prompt is the server's (A7, C3), unprovable where nobody can know."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sftprep.config.audit import AuditConfig
from sftprep.config.pack import OverLength, PackConfig
from sftprep.data import TRAINED_KINDS
from sftprep.prepare.audit import Audit, audit
from sftprep.prepare.pack import pack
from sftprep.reports.parity_json import CERTIFICATE_NAME, ParityCertificate
from sftprep.shards.read import open_shard_set
from sftprep.sources.lines import read_rows
from sftprep.stages.turn_prompts import digest, trained_turns


@pytest.fixture(scope="module")
def packed(samples: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set whose sources lie beside it, each row taken twice."""
    folder = tmp_path_factory.mktemp("prove")
    shutil.copytree(samples / "good", folder / "chats")
    sources = tuple(f"{path.stem}={path}:2" for path in sorted((folder / "chats").glob("*.jsonl")))
    pack(PackConfig(sources=sources, model=str(samples / "model"), out=folder / "set", max_length=512))
    return folder


@pytest.fixture
def own(packed: Path, tmp_path: Path) -> Path:
    """A copy of the set to damage; its sources stay where they are."""
    return Path(shutil.copytree(packed / "set", tmp_path / "set"))


def proved(directory: Path, **options: Any) -> Audit:
    return audit(AuditConfig(directory=directory, prove=True, sample=0, **options))


def certificate(directory: Path) -> ParityCertificate:
    return ParityCertificate.model_validate_json((directory / CERTIFICATE_NAME).read_text(encoding="utf-8"))


def test_every_prompt_of_an_untouched_set_is_the_servers_a7(own: Path) -> None:
    found = proved(own)
    parity = certificate(own)
    assert found.report.passed
    assert found.report.parity == parity
    assert (parity.verdict, parity.parity) == ("proven", 1.0)
    assert parity.num_equal == parity.num_turns == found.report.num_turns > 0
    assert parity.num_stopped == parity.num_turns
    assert all(source.state == "read" for source in parity.sources)


def test_the_same_set_gives_the_same_certificate_byte_for_byte(own: Path) -> None:
    proved(own)
    first = (own / CERTIFICATE_NAME).read_bytes()
    proved(own)
    assert (own / CERTIFICATE_NAME).read_bytes() == first


Edit = Callable[[dict[str, Any]], None]


def edit_first_row(directory: Path, edit: Edit) -> None:
    """Damage the first row so that only a comparison with the sources can see it."""
    path = directory / "manifest.json"
    manifest = json.loads(path.read_text())
    shard = directory / manifest["shards"][0]["file"]
    table = pq.read_table(shard)
    rows = table.to_pylist()
    edit(rows[0])
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), shard)
    manifest["shards"][0]["sha256"] = hashlib.sha256(shard.read_bytes()).hexdigest()
    path.write_text(json.dumps(manifest))


def change_a_prompt_token(row: dict[str, Any]) -> None:
    row["input_ids"][1] = 65 if row["input_ids"][1] != 65 else 66


def test_one_changed_prompt_token_is_found_at_its_place_with_both_texts(own: Path) -> None:
    edit_first_row(own, change_a_prompt_token)
    found = proved(own)
    parity = certificate(own)
    assert found.report.findings == [], "no other check can see it"
    assert not found.report.passed
    assert parity.verdict == "differing"
    assert parity.num_differing == len(parity.differences) > 0
    first = parity.differences[0]
    assert (first.row, first.document, first.position) == (0, 0, 1)
    assert first.trained_on != first.server_sends


def header_is_trained_as_completion(row: dict[str, Any]) -> None:
    """Move the first completion's start one token to the left, mask and counts included (A7)."""
    at = next(n for n, kind in enumerate(row["span_kinds"]) if kind in TRAINED_KINDS)
    row["span_starts"][at] -= 1
    row["assistant_masks"][row["span_starts"][at]] = 1
    row["num_trained"] += 1
    row["weight_sum"] += 1.0


def test_a_mask_that_starts_in_the_header_is_found_a7(own: Path) -> None:
    edit_first_row(own, header_is_trained_as_completion)
    parity = proved(own).report.parity
    assert parity is not None
    assert parity.verdict == "differing"
    assert parity.differences[0].trained_on == "", "the row's prompt ends too early"


def other_stop(row: dict[str, Any]) -> None:
    stop = next(start for start, kind in zip(row["span_starts"], row["span_kinds"], strict=True) if kind == 6)
    row["input_ids"][stop] = 66


def test_a_stop_token_that_stops_no_server_is_not_proven_b2(own: Path) -> None:
    edit_first_row(own, other_stop)
    parity = proved(own, allow=("stop-id-unknown",)).report.parity
    assert parity is not None
    assert parity.num_unstopped == 1
    assert parity.verdict == "differing"


def test_a_source_that_is_gone_is_unprovable_and_never_passed(packed: Path, tmp_path: Path, samples: Path) -> None:
    chats = Path(shutil.copytree(packed / "chats", tmp_path / "chats"))
    files = tuple(sorted(chats.glob("*.jsonl")))
    pack(PackConfig(files=files, model=str(samples / "model"), out=tmp_path / "set", max_length=512))
    files[0].unlink()
    with files[1].open("a") as file:
        file.write("\n")
    found = proved(tmp_path / "set", fail_on=("parity",))
    parity = certificate(tmp_path / "set")
    assert [source.state for source in parity.sources[:3]] == ["missing", "changed", "read"]
    assert parity.verdict == "unprovable"
    assert parity.num_unprovable == sum(source.num_turns for source in parity.sources[:2]) > 0
    assert parity.num_equal + parity.num_unprovable == parity.num_turns
    assert not found.report.passed
    assert [gate.passed for gate in found.report.gates] == [False]


def test_a_server_with_another_template_differs(own: Path, samples: Path, tmp_path: Path) -> None:
    model = Path(shutil.copytree(samples / "model", tmp_path / "model"))
    template = model / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|im_start|>", "<|im_start|> "))
    parity = proved(own, model=str(model)).report.parity
    assert parity is not None
    assert parity.verdict == "differing"
    assert parity.template_sha256 != open_shard_set(own).manifest.model.template_sha256


def test_turns_that_only_the_manifest_counts_are_not_proven(own: Path) -> None:
    path = own / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["counts"]["num_turns"] += 1
    path.write_text(json.dumps(manifest))
    parity = proved(own).report.parity
    assert parity is not None
    assert (parity.verdict, parity.num_unprovable) == ("unprovable", 1)


def test_the_turns_of_a_batch_are_those_of_a_plain_loop(packed: Path) -> None:
    batch = next(iter(open_shard_set(packed / "set").iter_batches()))
    expected = []
    for number, row in enumerate(batch.to_pylist()):
        border = 0
        for document, size in enumerate(row["seq_lengths"]):
            seen: set[int] = set()
            for start, kind, message in zip(row["span_starts"], row["span_kinds"], row["span_messages"], strict=True):
                inside = border <= start < border + size
                if inside and kind in TRAINED_KINDS and message not in seen:
                    seen.add(message)
                    prompt = np.array(row["input_ids"][border:start], np.int32)
                    expected.append((number, document, message, start - border, *digest(prompt).tolist()))
            border += size
    turns = trained_turns(batch)
    names = ("row", "document", "message", "num_prompt")
    found = [(*(int(t[name]) for name in names), *t["digest"].tolist()) for t in turns]
    assert found == expected
    assert len(found) > 10


def test_the_page_shows_the_servers_prompt_beside_the_row(own: Path, tmp_path: Path) -> None:
    edit_first_row(own, change_a_prompt_token)
    found = proved(own, html=tmp_path / "page.html")
    (row,) = found.rows([0])
    states = {(prompt.document, prompt.state) for prompt in row.prompts}
    assert (0, "differing") in states
    assert (1, "equal") in states
    differing = next(prompt for prompt in row.prompts if prompt.state == "differing")
    assert differing.position == 1
    assert differing.server


def test_the_command_proves_and_says_so(own: Path) -> None:
    command = [sys.executable, "-m", "sftprep", "audit", str(own), "--sample", "0", "--prove", "--fail-on", "parity"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "parity: proven" in done.stdout
    assert "holds parity: found 100.0000%, proven" in done.stdout


def test_model_without_prove_is_a_wrong_call(own: Path) -> None:
    command = [sys.executable, "-m", "sftprep", "audit", str(own), "--model", "x"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, "--model needs --prove" in done.stderr) == (2, True)


def packed_with(tmp_path: Path, samples: Path, messages: list[dict[str, str]], **options: Any) -> Path:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"messages": messages}))
    files = (tmp_path / "rows.jsonl",)
    pack(PackConfig(files=files, model=str(samples / "model"), out=tmp_path / "set", max_length=512, **options))
    return tmp_path / "set"


def test_a_prompt_with_split_control_tokens_is_called_split_and_a_changed_one_differs(
    tmp_path: Path, samples: Path
) -> None:
    messages = [{"role": "user", "content": "what is <|im_end|> ?"}, {"role": "assistant", "content": "Aye."}]
    directory = packed_with(tmp_path, samples, messages, control_tokens="split")
    parity = proved(directory).report.parity
    assert parity is not None
    assert (parity.verdict, parity.num_split, parity.num_equal) == ("split", 1, 0)
    edit_first_row(directory, change_a_prompt_token)
    parity = proved(directory).report.parity
    assert parity is not None
    assert (parity.verdict, parity.num_split, parity.num_differing) == ("differing", 0, 1)


def test_merged_answers_are_proven_as_they_were_merged(tmp_path: Path, samples: Path) -> None:
    turns = [("user", "one?"), ("assistant", "Aye."), ("assistant", "Two."), ("user", "and?"), ("assistant", "Three.")]
    messages = [{"role": role, "content": content} for role, content in turns]
    directory = packed_with(tmp_path, samples, messages, merge_consecutive=True)
    parity = proved(directory).report.parity
    assert parity is not None
    assert (parity.verdict, parity.num_equal) == ("proven", 2)


def test_masks_by_generation_tags_are_unprovable(tmp_path: Path, own: Path) -> None:
    path = own / "manifest.json"
    path.write_text(path.read_text().replace('"mask": "assistant"', '"mask": "generation-tags"'))
    parity = proved(own).report.parity
    assert parity is not None
    assert (parity.verdict, parity.num_equal) == ("unprovable", 0)


@pytest.mark.corpus
@pytest.mark.parametrize(
    ("model", "chats"),
    [
        ("qwen3", "llamafactory_reason_tool_use"),
        ("gpt-oss", "llamafactory_reason_tool_use"),
        ("phi-3", "belle_eval_zh"),
        ("mistral-v3", "belle_eval_zh"),
        ("deepseek-v3", "belle_eval_zh"),
    ],
)
def test_real_rows_are_proven_for_real_models_a7(corpus: Path, tmp_path: Path, model: str, chats: str) -> None:
    """Templates that rewrite, splice and switch, tokenizers whose tokens straddle the border."""
    rows = [r.raw for r in read_rows(corpus / "chat" / f"{chats}.jsonl.zst", name="rows")][:12]
    (tmp_path / "rows.jsonl").write_bytes(b"\n".join(rows))
    name = str(corpus / "models" / model)
    pack(
        PackConfig(files=(tmp_path / "rows.jsonl",), model=name, out=tmp_path / "set", max_length=16384, max_drop="90%")
    )
    parity = proved(tmp_path / "set", model=name).report.parity
    assert parity is not None
    assert (parity.verdict, parity.differences) == ("proven", [])
    assert parity.num_equal > 10


def test_a_conversation_cut_before_a_question_is_proven_for_what_is_left_of_it_a7(
    samples: Path, tmp_path: Path
) -> None:
    talk: list[dict[str, str]] = [{"role": "system", "content": "Be brief."}]
    for number in range(6):
        talk.append({"role": "user", "content": f"Question {number}: " + "why is the sea salt " * 4})
        talk.append({"role": "assistant", "content": f"Answer {number}: rivers bring it."})
    source = tmp_path / "long.jsonl"
    source.write_text(json.dumps({"messages": talk}) + "\n")
    config = PackConfig(
        files=(source,),
        model=str(samples / "model"),
        out=tmp_path / "set",
        max_length=192,
        over_length=OverLength.SPLIT_AT_TURN,
    )
    directory = pack(config).shards.directory
    proved(directory)
    parity = certificate(directory)
    assert (parity.verdict, parity.num_equal) == ("proven", 6)
    assert 0 < parity.num_pieces < 6
    # A set that was not cut holds whole conversations: a piece in it is no server's prompt.
    manifest = json.loads((directory / "manifest.json").read_text())
    manifest["config"]["over_length"] = "refuse"
    (directory / "manifest.json").write_text(json.dumps(manifest))
    proved(directory)
    parity = certificate(directory)
    assert (parity.verdict, parity.num_pieces, parity.num_differing > 0) == ("differing", 0, True)

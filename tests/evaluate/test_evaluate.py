"""A model, suites and held-out shards to one report: prompts as served, answers and loss that no batch changes."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from sftprep.cli.app import app
from sftprep.config.evaluate import EvaluateConfig
from sftprep.config.pack import PackConfig
from sftprep.errors import ShardError, SourceError, UsageError
from sftprep.evaluate.likelihood import held_out_documents, held_out_loss
from sftprep.evaluate.local import Sampling, open_local
from sftprep.evaluate.prompts import prompt_ids
from sftprep.evaluate.run import evaluate
from sftprep.evaluate.suite import read_suite
from sftprep.prepare.pack import pack
from sftprep.shards.read import open_shard_set

WriteSuite = Callable[..., str]
STOPS = [{"kind": "stops"}]


def ask(text: str, **more: Any) -> dict[str, Any]:
    asked = [{"role": "user", "content": text}]
    return {"id": text[:20], "tags": ["long"], "messages": asked, "scorers": STOPS, **more}


CASES = [ask("Is the pier open?", tags=["short"]), ask("When does the last boat leave for Skarv on Sunday?")]


def run(model: Path, suite: str, **options: Any) -> Any:
    return evaluate(EvaluateConfig(model=str(model), suite=(suite,), threads=1, **options))


def test_prompt_ids_are_those_of_transformers(tiny_model: Path, write_suite: WriteSuite) -> None:
    talk = [{"role": "system", "content": "Be brief."}, *CASES[0]["messages"], {"role": "assistant", "content": "Aye."}]
    cases = [*CASES, ask("again", messages=[*talk, {"role": "user", "content": "And now?"}])]
    conversations = [case.conversation for case in read_suite(write_suite(cases)).cases]
    model = open_local(str(tiny_model), device="cpu", stop_ids=None)
    found = prompt_ids(model.files, tiny_model, conversations, now=datetime.now())
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    served = [
        tokenizer.apply_chat_template(case["messages"], add_generation_prompt=True, return_dict=False) for case in cases
    ]
    assert found == served


def test_left_padded_batches_answer_as_one_by_one(tiny_model: Path) -> None:
    model = open_local(str(tiny_model), device="cpu", stop_ids=None)
    prompts = [[7, 8, 9], [20, 21, 22, 23, 24, 25, 26, 30, 31], [5], [40, 41, 42, 43]]
    sampling = Sampling(max_new_tokens=12)
    alone = [model.answers([prompt], sampling=sampling, batch_size=1)[0] for prompt in prompts]
    assert model.answers(prompts, sampling=sampling, batch_size=4) == alone
    assert len({answer.text for answer in alone}) > 1


def test_sampling_repeats_by_its_seed_and_changes_with_it(tiny_model: Path) -> None:
    model = open_local(str(tiny_model), device="cpu", stop_ids=None)
    first, again, other = (
        model.answers([[7, 8, 9]], sampling=Sampling(12, 1.5, seed), batch_size=1)[0].text for seed in (1, 1, 2)
    )
    assert first == again != other


def test_an_answer_ends_at_any_of_the_stop_tokens(tiny_model: Path) -> None:
    free = open_local(str(tiny_model), device="cpu", stop_ids=None)
    ids = free._generate([[7, 8, 9]], Sampling(8))[0]
    model = open_local(str(tiny_model), device="cpu", stop_ids=[ids[2]])
    answer = model.answers([[7, 8, 9]], sampling=Sampling(8), batch_size=1)[0]
    assert (answer.stopped, answer.num_tokens) == (True, 1 + ids.index(ids[2]))


@pytest.fixture(scope="session")
def packed(samples: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("packed")
    files = (samples / "good" / "openai.jsonl", samples / "good" / "tools.jsonl")
    for name, packing in (("packs", True), ("rows", False)):
        pack(PackConfig(files=files, model=str(tiny_model), out=place / name, max_length=512, packing=packing))
    return {"packs": place / "packs", "rows": place / "rows"}


def test_held_out_loss_depends_neither_on_batch_nor_on_packing(tiny_model: Path, packed: dict[str, Path]) -> None:
    model = open_local(str(tiny_model), device="cpu", stop_ids=None)
    found = [held_out_loss(model, open_shard_set(packed["packs"]), batch_size=size) for size in (1, 5)]
    found.append(held_out_loss(model, open_shard_set(packed["rows"]), batch_size=3))
    per_token = [loss.total.nats / loss.total.num_tokens for loss in found]
    assert max(per_token) - min(per_token) < 1e-4
    assert len({(loss.total.num_tokens, loss.total.num_bytes) for loss in found}) == 1
    kinds = found[0].categories
    assert kinds["kind:completion"].nats + kinds["kind:stop"].nats == pytest.approx(found[0].total.nats)
    assert kinds["kind:stop"].num_bytes == 0
    sources = [loss for name, loss in kinds.items() if name.startswith("source:")]
    assert len(sources) == 2
    assert sum(loss.num_tokens for loss in sources) == found[0].total.num_tokens


@pytest.fixture
def told_apart(tiny_model: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A packed set of nine rows, of which three say that people wrote them and four that a model did; and its file."""
    rows = tmp_path / "rows.jsonl"
    said = ["human"] * 3 + ["synthetic"] * 4 + [None] * 2
    lines = [
        {
            "messages": [
                {"role": "user", "content": f"Is pier {number} open?"},
                {"role": "assistant", "content": f"Aye, pier {number} is open until {number + 3}."},
            ],
            **({"source": name} if name else {}),
        }
        for number, name in enumerate(said)
    ]
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    pack(PackConfig(files=(rows,), model=str(tiny_model), out=tmp_path / "told", max_length=512))
    return tmp_path / "told", rows


def test_held_out_loss_is_told_apart_by_who_wrote_the_rows_against_the_baseline_too(
    tiny_model: Path, told_apart: tuple[Path, Path], tmp_path: Path
) -> None:
    directory, rows = told_apart
    other = tmp_path / "other"
    shutil.copytree(tiny_model, other)
    network = AutoModelForCausalLM.from_pretrained(tiny_model)
    with torch.no_grad():
        network.model.norm.weight.mul_(0.5)
    network.save_pretrained(other)
    page, report = tmp_path / "page.html", tmp_path / "report.json"
    command = ["evaluate", "--model", str(tiny_model), "--baseline", str(other), "--held-out", str(directory)]
    CliRunner().invoke(app, [*command, "--threads", "1", "--json", str(report), "--html", str(page)])
    found = json.loads(report.read_bytes())["likelihood"]
    one = {name: found["categories"][f"origin:{name}"] for name in ("human", "synthetic")}
    parts = {}
    for name, keep in (("human", range(3)), ("synthetic", range(3, 7))):
        part = tmp_path / f"{name}.jsonl"
        lines = rows.read_text(encoding="utf-8").splitlines(keepends=True)
        part.write_text("".join(lines[number] for number in keep), encoding="utf-8")
        pack(PackConfig(files=(part,), model=str(tiny_model), out=tmp_path / name, max_length=512))
        parts[name] = tuple(
            held_out_loss(
                open_local(str(model), device="cpu", stop_ids=None), open_shard_set(tmp_path / name), batch_size=2
            )
            for model in (tiny_model, other)
        )
    for name, (new, old) in parts.items():
        assert one[name]["num_tokens"] == new.total.num_tokens
        assert one[name]["per_token"] == pytest.approx(new.total.nats / new.total.num_tokens, abs=1e-4)
        change = one[name]["change"]
        assert change["baseline"] == pytest.approx(old.total.nats / old.total.num_tokens, abs=1e-4)
        assert change["difference"] == pytest.approx(one[name]["per_token"] - change["baseline"], abs=1e-6)
        assert change["low"] <= change["difference"] <= change["high"]
    assert "origin:synthetic" in page.read_text(encoding="utf-8")
    assert found["unread"] == []


def test_rows_whose_file_is_gone_are_not_told_apart_and_that_is_said(
    tiny_model: Path, told_apart: tuple[Path, Path], tmp_path: Path
) -> None:
    directory, rows = told_apart
    rows.unlink()
    found = evaluate(EvaluateConfig(model=str(tiny_model), held_out=directory, threads=1)).likelihood
    assert not [name for name in found.categories if name.startswith("origin:")]
    assert found.unread == [f"{rows} (missing)"]


def test_cases_are_told_apart_by_who_wrote_them(tiny_model: Path, write_suite: WriteSuite) -> None:
    long = {"kind": "regex", "pattern": "."}
    cases = [
        ask("Is the pier open?", source="human", scorers=[long]),
        ask("Is the lamp lit?", source="synthetic", scorers=[{**long, "pattern": "no such answer"}]),
        ask("Who is there?", scorers=[long]),
    ]
    report = run(tiny_model, write_suite(cases), fail_on=("pass-rate.human=1", "pass-rate.synthetic=1"))
    assert {group.name: (group.num_passed, group.num_cases) for group in report.sources} == {
        "human": (1, 1),
        "synthetic": (0, 1),
    }
    assert gates(report) == {"pass-rate.human=1": True, "pass-rate.synthetic=1": False}


def test_held_out_loss_is_what_transformers_computes_document_by_document(
    tiny_model: Path, packed: dict[str, Path]
) -> None:
    shards = open_shard_set(packed["packs"])
    network = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    nats, tokens = 0.0, 0
    with torch.no_grad():
        for document in held_out_documents(shards):
            ids = torch.from_numpy(document.ids)[None]
            labels = torch.where(torch.from_numpy(document.trained)[None], ids, -100)
            count = int(document.trained.sum())
            nats += float(network(ids, labels=labels).loss) * count
            tokens += count
    found = held_out_loss(open_local(str(tiny_model), device="cpu", stop_ids=None), shards, batch_size=4).total
    assert found.num_tokens == tokens == shards.manifest.counts.num_trained
    assert found.nats == pytest.approx(nats, rel=1e-5)


def test_bytes_are_those_of_the_answers(tiny_model: Path, samples: Path, tmp_path: Path) -> None:
    text = "Aye. Berth nine — \u00e5pen. Fair winds."
    rows = tmp_path / "rows.jsonl"
    talk = [{"role": "user", "content": "Open?"}, {"role": "assistant", "content": text}]
    rows.write_text(json.dumps({"messages": talk}) + "\n", encoding="utf-8")
    pack(PackConfig(files=(rows,), model=str(tiny_model), out=tmp_path / "out", max_length=512))
    model = open_local(str(tiny_model), device="cpu", stop_ids=None)
    found = held_out_loss(model, open_shard_set(tmp_path / "out"), batch_size=1)
    assert found.total.num_bytes == len(text.encode())


def test_a_model_of_another_template_is_refused_for_held_out_loss(
    tiny_model: Path, packed: dict[str, Path], tmp_path: Path
) -> None:
    changed = changed_template(tiny_model, tmp_path / "changed")
    model = open_local(str(changed), device="cpu", stop_ids=None)
    with pytest.raises(ShardError) as caught:
        held_out_loss(model, open_shard_set(packed["packs"]), batch_size=1)
    assert caught.value.code == "template-differs"


def changed_template(model: Path, place: Path) -> Path:
    place.mkdir()
    for path in model.iterdir():
        (place / path.name).write_bytes(path.read_bytes())
    template = place / "chat_template.jinja"
    template.write_text(template.read_text(encoding="utf-8").replace("<|im_start|>user", "<|im_start|>human"))
    if template.read_bytes() == (model / "chat_template.jinja").read_bytes():
        template.write_text(template.read_text(encoding="utf-8") + " ")
    return place


def gates(report: Any) -> dict[str, bool]:
    return {gate.gate: gate.passed for gate in report.gates}


def test_what_a_model_was_trained_on_is_checked_by_default(
    tiny_model: Path, packed: dict[str, Path], write_suite: WriteSuite, samples: Path, tmp_path: Path
) -> None:
    fresh = run(tiny_model, write_suite(CASES), trained_on=packed["packs"])
    assert gates(fresh) == {"contamination": True, "parity": True, "provenance": True}
    assert fresh.contamination.num_rows == 55
    leaked = ask(long_prompt(samples))
    assert gates(run(tiny_model, write_suite([leaked]), trained_on=packed["packs"]))["contamination"] is False
    changed = changed_template(tiny_model, tmp_path / "changed")
    found = run(changed, write_suite(CASES), trained_on=packed["packs"])
    assert gates(found)["parity"] is False
    assert not found.passed


def long_prompt(samples: Path) -> str:
    lines = (samples / "good" / "openai.jsonl").read_text(encoding="utf-8").splitlines()
    texts = [m["content"] for line in lines for m in json.loads(line)["messages"] if m["role"] == "user"]
    return max((text for text in texts if isinstance(text, str)), key=len)


def test_a_model_is_no_worse_than_itself_and_gates_decide_the_exit_code(
    tiny_model: Path, write_suite: WriteSuite, tmp_path: Path
) -> None:
    suite = write_suite(CASES, gates=["pass-rate=0"])
    base = ["evaluate", "--model", str(tiny_model), "--suite", suite, "--threads", "1"]
    report = tmp_path / "report.json"
    good = CliRunner().invoke(app, [*base, "--baseline", str(tiny_model), "--json", str(report)])
    assert good.exit_code == 0, good.output
    found = json.loads(report.read_bytes())
    assert found["suites"][0]["against_baseline"]["verdict"] == "no difference shown"
    assert {gate["gate"] for gate in found["gates"]} == {"pass-rate.harbour=0", "regression"}
    assert "not checked: whether training rows" in good.output
    page = tmp_path / "page.html"
    bad = CliRunner().invoke(app, [*base, "--fail-on", "stops=1", "--html", str(page)])
    assert bad.exit_code == 1
    assert "FAILED  stops=1" in bad.output
    assert "<script" not in page.read_text(encoding="utf-8")
    wrong = CliRunner().invoke(app, [*base, "--fail-on", "pass-rate.nowhere=1"])
    assert getattr(wrong.exception, "exit_code", 0) == 2


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"fail_on": ("no-such=1",)}, "no gate is"),
        ({"fail_on": ("pass-rate",)}, "needs a value"),
        ({"fail_on": ("parity=1",)}, "takes no value"),
        ({"fail_on": ("pass-rate=80",)}, "share"),
        ({"fail_on": ("regression",)}, "--baseline"),
        ({"fail_on": ("improvement",)}, "--baseline"),
        ({"fail_on": ("provenance",)}, "--trained-on"),
        ({"suite": ()}, "nothing to evaluate"),
    ],
)
def test_a_gate_that_cannot_be_judged_is_refused(options: dict[str, Any], what: str) -> None:
    with pytest.raises(ValidationError, match=what):
        EvaluateConfig(**{"model": "m", "suite": ("s",), **options})


@pytest.mark.parametrize(
    ("case", "what"),
    [
        ({**CASES[0], "scorers": []}, "nothing judges the case"),
        ({**CASES[0], "mesages": []}, "/mesages"),
        ({**CASES[0], "tags": []}, "/tags"),
        ({**CASES[0], "messages": [{"role": "usr", "content": "x"}]}, "usr"),
        (CASES[1], "twice"),
    ],
)
def test_a_bad_case_is_named_by_file_and_line(write_suite: WriteSuite, case: dict[str, Any], what: str) -> None:
    with pytest.raises(SourceError, match=what) as caught:
        read_suite(write_suite([CASES[1], case]))
    assert caught.value.code == "bad-case"
    assert caught.value.place.endswith("harbour.jsonl:2")


@pytest.mark.parametrize("option", ["--json", "--html"])
def test_a_report_that_cannot_be_written_is_named_before_a_model_is_opened(
    option: str, write_suite: WriteSuite, tmp_path: Path
) -> None:
    argv = ["evaluate", "--model", "no-such-model", "--suite", write_suite(CASES), option, str(tmp_path / "no" / "r")]
    found = CliRunner().invoke(app, argv).exception
    assert (getattr(found, "code", ""), getattr(found, "place", "")) == (
        "no-such-directory",
        str(tmp_path / "no" / "r"),
    )


def test_an_unknown_suite_is_named(write_suite: WriteSuite) -> None:
    with pytest.raises(UsageError, match="no such file"):
        read_suite("no-such-suite")
    with pytest.raises(SourceError, match="no cases"):
        read_suite(write_suite([]))


def test_a_set_of_which_a_file_was_trained_is_no_held_out_set(tiny_model: Path, packed: dict[str, Path]) -> None:
    config = EvaluateConfig(model=str(tiny_model), held_out=packed["rows"], trained_on=packed["packs"], threads=1)
    with pytest.raises(ShardError) as raised:
        evaluate(config)
    assert (raised.value.code, raised.value.place) == ("eval-trained", str(packed["rows"]))


def test_training_rows_that_are_gone_are_named_and_fail_until_they_are_given(
    tiny_model: Path, write_suite: WriteSuite, samples: Path, tmp_path: Path
) -> None:
    rows = Path(shutil.copy(samples / "good" / "openai.jsonl", tmp_path / "rows.jsonl"))
    out = pack(PackConfig(files=(rows,), model=str(tiny_model), out=tmp_path / "set", max_length=512)).shards.directory
    moved = rows.rename(tmp_path / "moved.jsonl")
    suite = write_suite(CASES)
    gone = run(tiny_model, suite, trained_on=out)
    assert gates(gone)["contamination"] is False
    assert gone.contamination.unread == [f"{rows} (missing)"]
    given = run(tiny_model, suite, trained_on=out, against=(moved,))
    assert gates(given)["contamination"] is True
    assert given.contamination.unread == []


def test_a_held_out_set_with_changed_bytes_is_refused(
    tiny_model: Path, packed: dict[str, Path], tmp_path: Path
) -> None:
    damaged = Path(shutil.copytree(packed["packs"], tmp_path / "set"))
    shard = next((damaged / "shards").glob("*.parquet"))
    shard.write_bytes(shard.read_bytes()[:-1] + b"?")
    with pytest.raises(ShardError) as refused:
        evaluate(EvaluateConfig(model=str(tiny_model), held_out=damaged, threads=1))
    assert refused.value.code == "shard-checksum"


def test_training_rows_in_a_file_whose_name_is_no_text_are_compared_and_named(
    tiny_model: Path, write_suite: WriteSuite, tmp_path: Path
) -> None:
    rows = tmp_path / os.fsdecode(b"\xff.jsonl")
    messages = [*CASES[1]["messages"], {"role": "assistant", "content": "At six."}]
    rows.write_text(json.dumps({"messages": messages}) + "\n", encoding="utf-8")
    found = tmp_path / "r.json"
    pack(PackConfig(files=(rows,), model=str(tiny_model), out=tmp_path / "o", max_length=256))
    argv = ["evaluate", "--model", str(tiny_model), "--suite", write_suite(CASES), "--trained-on", str(tmp_path / "o")]
    done = CliRunner().invoke(app, [*argv, "--json", str(found), "--html", str(tmp_path / "r.html"), "--threads", "1"])
    assert done.exit_code == 1, (done.output, done.exception)
    contamination = json.loads(found.read_bytes().decode("utf-8"))["contamination"]
    assert [os.fsencode(Path(file).name) for file in contamination["files"]] == [b"\xff.jsonl"]
    assert all("\udcff.jsonl:1 (eval-" in leak for leak in contamination["found"])
    assert contamination["found"]
    assert "\\udcff.jsonl:1" in (tmp_path / "r.html").read_text(encoding="utf-8")

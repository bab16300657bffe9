"""Every option that names a place takes a URL and does what it does with a path, or refuses a URL by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import BaseModel
from pydantic.functional_validators import AfterValidator, PlainValidator
from typer.testing import CliRunner

from sftprep.cli.app import app
from sftprep.config.audit import AuditConfig
from sftprep.config.demo import DemoConfig
from sftprep.config.evaluate import EvaluateConfig
from sftprep.config.pack import PackConfig
from sftprep.config.places import file_of, input_of, on_this_machine, place_of
from sftprep.config.split import SplitConfig
from sftprep.config.train import TrainConfig
from sftprep.config.validate import ValidateConfig
from sftprep.errors import UsageError
from sftprep.prepare.pack import pack
from sftprep.reports.quality_json import QualityReport
from sftprep.shards.read import open_shard_set

if TYPE_CHECKING:
    from tests.stores.s3 import Server

pytest_plugins = ("tests.stores.s3",)

BUCKET = "s3://bucket/"
CONFIGS: dict[str, type[BaseModel]] = {
    "audit": AuditConfig,
    "demo": DemoConfig,
    "evaluate": EvaluateConfig,
    "pack": PackConfig,
    "split": SplitConfig,
    "train": TrainConfig,
    "validate": ValidateConfig,
}
ANYWHERE = {
    "audit": {"directory", "json_file", "html", "diff"},
    "evaluate": {"held_out", "trained_on", "against", "json_file", "html"},
    "pack": {"files", "out"},
    "split": {"files"},
    "train": {"data", "eval_shards"},
    "validate": {"files", "json_file", "html", "good", "bad", "fix_to", "against", "quality_json"},
}
"""Each of these is run below with a URL; beside them `--source` of pack, `--suite` of evaluate, `--eval` of train."""

HERE = {
    ("audit", "cache_dir"): ["packed", "--cache-dir"],
    ("demo", "out"): ["--out"],
    ("evaluate", "answers"): ["--model", "m", "--suite", "tone", "--answers"],
    ("evaluate", "cache_dir"): ["--model", "m", "--suite", "tone", "--cache-dir"],
    ("pack", "work_dir"): ["a.jsonl", "--model", "m", "--max-length", "8", "--out", "o", "--work-dir"],
    ("split", "out"): ["a.jsonl", "--out"],
    ("train", "out"): ["packed", "--model", "m", "--out"],
    ("train", "cache_dir"): ["packed", "--model", "m", "--out", "o", "--cache-dir"],
    ("validate", "quality_config"): ["a.jsonl", "--quality-config"],
}
MODELS = {
    ("audit", "model"): ["packed", "--prove", "--model"],
    ("evaluate", "model"): ["--suite", "tone", "--model"],
    ("evaluate", "baseline"): ["--suite", "tone", "--model", "m", "--baseline"],
    ("pack", "model"): ["a.jsonl", "--max-length", "8", "--out", "o", "--model"],
    ("train", "model"): ["packed", "--out", "o", "--model"],
    ("validate", "model"): ["a.jsonl", "--model"],
}


def parts_of(annotation: Any) -> Iterator[Any]:
    yield annotation
    for part in get_args(annotation):
        yield from parts_of(part)


def kind_of(config: type[BaseModel], name: str) -> str:
    """`anywhere` of a field that takes URLs, `here` of one that refuses them, `bare` of a path that does neither."""
    field = config.model_fields[name]
    parts = [*field.metadata, *parts_of(field.annotation)]
    if any(isinstance(part, PlainValidator) and part.func in {place_of, file_of, input_of} for part in parts):
        return "anywhere"
    if any(isinstance(part, AfterValidator) and part.func is on_this_machine for part in parts):
        return "here"
    return "bare" if any(part is Path for part in parts) else ""


def fields_of(kind: str) -> set[tuple[str, str]]:
    return {(command, name) for command, c in CONFIGS.items() for name in c.model_fields if kind_of(c, name) == kind}


def test_every_option_that_names_a_place_is_in_one_of_the_tables() -> None:
    assert fields_of("bare") == set()
    assert fields_of("here") == set(HERE)
    assert fields_of("anywhere") == {(command, name) for command, names in ANYWHERE.items() for name in names}


def told(arguments: list[str]) -> Any:
    """The result of a command; its error, if it has one of ours, is `exception`."""
    return CliRunner().invoke(app, arguments)


@pytest.mark.parametrize(("command", "field"), sorted({**HERE, **MODELS}))
def test_an_option_that_cannot_take_a_url_says_so_by_its_name(command: str, field: str) -> None:
    words = {**HERE, **MODELS}[command, field]
    found = told([command, *words, "s3://bucket/place"]).exception
    assert isinstance(found, UsageError)
    assert (found.code, found.exit_code) == ("bad-option", 2)
    assert found.message.startswith(f"{words[-1]}: s3:/")
    assert "is a URL" in found.message
    assert "here" in found.message or "copy" in found.message


def test_a_url_of_the_hub_is_no_model_and_its_id_is_named() -> None:
    found = told(["pack", "a.jsonl", "--max-length", "8", "--out", "o", "--model", "hf://org/model"]).exception
    assert "owner/name" in str(found)


def test_schemas_are_written_on_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = told(["schema", "--out", "s3://bucket/schemas"]).exception
    assert getattr(found, "code", "") == "bad-option"
    assert list(tmp_path.iterdir()) == []


def succeeded(arguments: list[str], *, code: int = 0) -> str:
    found = told(arguments)
    assert found.exit_code == code, f"{found.output}{found.exception}"
    return found.output


@dataclass
class Bucket:
    """What is in the bucket, by names below it."""

    store: Any

    def put(self, path: Path) -> str:
        """Put a file, or a directory with all that is in it, there; its URL."""
        for file in [path] if path.is_file() else path.rglob("*"):
            if file.is_file():
                self.store.pipe_file(f"bucket/{file.relative_to(path.parent)}", file.read_bytes())
        return f"{BUCKET}{path.name}"

    def get(self, name: str) -> bytes:
        found: bytes = self.store.cat_file(f"bucket/{name}")
        return found


@pytest.fixture
def bucket(store: Any) -> Bucket:
    return Bucket(store)


def compared(found: bytes | str, expected: bytes | str, **names: str) -> None:
    """That two reports differ only in what files are called."""
    texts = [text.decode() if isinstance(text, bytes) else text for text in (found, expected)]
    for url, path in names.items():
        texts[0] = texts[0].replace(url, path)
    assert texts[0] == texts[1]


@pytest.fixture
def chats(tmp_path: Path, samples: Path) -> Path:
    """Good rows of several formats, and a bad one."""
    good = (samples / "good" / "openai.jsonl").read_bytes() + (samples / "good" / "sharegpt.jsonl").read_bytes()
    path = tmp_path / "chats.jsonl"
    path.write_bytes(good + b'{"messages": [{"role": "asistant", "content": "x"}]}\n')
    return path


@pytest.fixture
def packed(tmp_path: Path, samples: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A set of several shards in a directory."""
    monkeypatch.setattr("sftprep.shards.gather.BATCH_TOKENS", 1024)
    options: dict[str, Any] = {"model": str(samples / "model"), "max_length": 512, "shard_tokens": 1024}
    pack(PackConfig(files=[samples / "good" / "openai.jsonl"], out=tmp_path / "packed", **options))
    assert len(open_shard_set(tmp_path / "packed").manifest.shards) > 1
    return tmp_path / "packed"


@pytest.fixture
def sets(packed: Path, tmp_path: Path, samples: Path) -> tuple[Path, Path]:
    """A set that is held out, and one of other rows that is trained."""
    options: dict[str, Any] = {"model": str(samples / "model"), "max_length": 512}
    pack(PackConfig(files=[samples / "good" / "reasoning.jsonl"], out=tmp_path / "trained", **options))
    return packed, tmp_path / "trained"


def test_a_source_that_is_gone_or_another_is_unprovable_and_one_that_is_closed_is_an_error(
    samples: Path, bucket: Bucket, server: Server, tmp_path: Path
) -> None:
    url = bucket.put(samples / "good" / "openai.jsonl")
    options: dict[str, Any] = {"model": str(samples / "model"), "out": tmp_path / "set", "max_length": 512}
    pack(PackConfig(files=[url], **options))

    def proof() -> Any:
        result = told(["audit", str(tmp_path / "set"), "--prove", "--json", str(tmp_path / "a.json")])
        parity = json.loads((tmp_path / "a.json").read_bytes())["parity"] if result.exception.args == (1,) else {}
        return parity.get("verdict"), parity.get("sources", [{}])[0].get("state"), result.exception

    server.fault = lambda method, path: "refuse"
    assert getattr(proof()[2], "code", "") == "no-access"
    server.fault = lambda method, path: ""
    bucket.store.pipe_file("bucket/openai.jsonl", (samples / "good" / "tools.jsonl").read_bytes())
    assert proof()[:2] == ("unprovable", "changed")
    bucket.store.rm_file("bucket/openai.jsonl")
    assert proof()[:2] == ("unprovable", "missing")


Ends = tuple[str, str]
ENDS = [("url", "path"), ("path", "url"), ("url", "url")]
"""Where what is read lies, and what is written, or the two sides of a comparison."""

OUTPUTS = {
    "--json": "r.json",
    "--good": "good.jsonl",
    "--bad": "bad.jsonl",
    "--fix-to": "fixed.jsonl",
    "--html": "r.html",
}


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("ends", ENDS)
def test_validate_reads_and_writes_urls(chats: Path, bucket: Bucket, tmp_path: Path, ends: Ends, workers: str) -> None:
    (tmp_path / "expected").mkdir()
    (tmp_path / "found").mkdir()
    words = [word for option, name in OUTPUTS.items() for word in (option, str(tmp_path / "expected" / name))]
    expected = succeeded(["validate", str(chats), *words], code=1)
    place = f"{BUCKET}found/" if ends[1] == "url" else f"{tmp_path}/found/"
    source = bucket.put(chats) if ends[0] == "url" else str(chats)
    words = [word for option, name in OUTPUTS.items() for word in (option, place + name)]
    found = succeeded(["validate", source, *words, "--workers", workers], code=1)
    compared(found, expected, **{source: str(chats)})
    for name in OUTPUTS.values():
        written = bucket.get(f"found/{name}") if ends[1] == "url" else (tmp_path / "found" / name).read_bytes()
        compared(written, (tmp_path / "expected" / name).read_bytes(), **{source: str(chats)})


@pytest.mark.parametrize(
    ("place", "code"),
    [
        ("s3://bucket/chats.jsonl", "output-in-use"),
        ("s3://bucket/good.jsonl.gz", "output-suffix"),
        ("s3://bucket", "no-such-directory"),
    ],
)
def test_a_url_that_no_rows_can_be_written_to_is_named_before_they_are_read(
    chats: Path, bucket: Bucket, place: str, code: str
) -> None:
    before = bucket.put(chats) and sorted(bucket.store.find("bucket"))
    error = told(["validate", f"{BUCKET}chats.jsonl", "--good", place]).exception
    assert isinstance(error, UsageError)
    assert (error.code, error.place.rstrip("/")) == (code, place)
    assert sorted(bucket.store.find("bucket")) == before
    assert bucket.get("chats.jsonl") == chats.read_bytes()


def test_a_report_that_cannot_be_put_at_its_url_is_named_before_the_work_for_it(bucket: Bucket) -> None:
    words = ["evaluate", "--suite", "tone", "--model", "nowhere", "--json"]
    error = told([*words, "s3://bucket"]).exception
    assert getattr(error, "code", "") == "no-such-directory", repr(error)
    error = told(["audit", "nowhere", "--html", "s3://bucket"]).exception
    assert getattr(error, "code", "") == "no-such-directory", repr(error)


def test_validate_takes_patterns_of_objects(chats: Path, samples: Path, bucket: Bucket) -> None:
    lines = chats.read_bytes().splitlines(keepends=True)
    bucket.store.pipe_file("bucket/data/a.jsonl", b"".join(lines[:10]))
    bucket.store.pipe_file("bucket/data/deep/b.jsonl", b"".join(lines[10:]))
    found = succeeded(["validate", "s3://bucket/data/**/*.jsonl", "--quiet"], code=1)
    assert found == succeeded(["validate", str(chats), "--quiet"], code=1)


def test_validate_measures_quality_of_objects_against_objects(samples: Path, bucket: Bucket, tmp_path: Path) -> None:
    rows, held = samples / "good" / "openai.jsonl", tmp_path / "held.jsonl"
    held.write_bytes(b"".join(rows.read_bytes().splitlines(keepends=True)[:3]))
    words = ["--fail-on", "eval-overlap", "--quality-json"]
    expected = succeeded(["validate", str(rows), "--against", str(held), *words, str(tmp_path / "q.json")], code=1)
    urls = bucket.put(rows), bucket.put(held)
    found = succeeded(["validate", urls[0], "--against", urls[1], *words, f"{BUCKET}q.json"], code=1)
    assert "fails on eval-overlap" in found
    names = {urls[0]: str(rows), urls[1]: str(held)}
    compared(found, expected, **names)
    compared(bucket.get("q.json"), (tmp_path / "q.json").read_bytes(), **names)
    assert QualityReport.model_validate_json(bucket.get("q.json")).leakage is not None


def test_split_holds_rows_of_objects_out(samples: Path, bucket: Bucket, tmp_path: Path) -> None:
    rows = samples / "good" / "openai.jsonl"
    succeeded(["split", str(rows), "--eval", "5", "--out", str(tmp_path / "expected")])
    succeeded(["split", bucket.put(rows), "--eval", "5", "--out", str(tmp_path / "found")])
    for name in ("train.jsonl", "eval.jsonl"):
        assert (tmp_path / "found" / name).read_bytes() == (tmp_path / "expected" / name).read_bytes()


@pytest.mark.parametrize("ends", ENDS)
def test_pack_reads_and_writes_urls(packed: Path, samples: Path, bucket: Bucket, tmp_path: Path, ends: Ends) -> None:
    rows = samples / "good" / "openai.jsonl"
    source = bucket.put(rows) if ends[0] == "url" else str(rows)
    out = f"{BUCKET}out" if ends[1] == "url" else str(tmp_path / "out")
    words = ["--model", str(samples / "model"), "--max-length", "512", "--shard-tokens", "1024"]
    succeeded(["pack", source, *words, "--out", out, "--work-dir", str(tmp_path / "work")])
    for path in (packed / "shards").iterdir():
        name = f"out/shards/{path.name}"
        assert (bucket.get(f"{name}") if ends[1] == "url" else (tmp_path / name).read_bytes()) == (path.read_bytes())


def test_pack_foretells_what_becomes_of_objects(samples: Path, bucket: Bucket, tmp_path: Path) -> None:
    rows = samples / "good" / "openai.jsonl"
    words = ["--model", str(samples / "model"), "--max-length", "512", "--dry-run", "--out"]
    expected = succeeded(["pack", str(rows), *words, str(tmp_path / "out")])
    found = succeeded(["pack", "--source", f"named={bucket.put(rows)}", *words, f"{BUCKET}out"])
    without_time = [[line for line in text.splitlines() if "tokens" in line] for text in (found, expected)]
    assert without_time[0] == without_time[1] != []


@pytest.fixture(autouse=True)
def _home_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache of copies is below it."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def test_audit_reads_and_writes_urls_and_proves(packed: Path, bucket: Bucket, tmp_path: Path) -> None:
    words = ["--prove", "--fail-on", "parity", "--json"]
    expected = succeeded(["audit", str(packed), *words, str(tmp_path / "a.json"), "--html", str(tmp_path / "a.html")])
    url = bucket.put(packed)
    bucket.store.rm_file("bucket/packed/parity.json")
    found = succeeded(["audit", url, *words, f"{BUCKET}a.json", "--html", f"{BUCKET}a.html"])
    names = {url: str(packed), f"{BUCKET}a.html": str(tmp_path / "a.html")}
    compared(found, expected, **names)
    compared(bucket.get("a.json"), (tmp_path / "a.json").read_bytes(), **names)
    compared(bucket.get("a.html"), (tmp_path / "a.html").read_bytes(), **names)
    assert bucket.get("packed/parity.json") == (packed / "parity.json").read_bytes()


@pytest.fixture
def other(tmp_path: Path, samples: Path) -> Path:
    """A set of more chats, of which fewer turns are trained."""
    files = [samples / "good" / "openai.jsonl", samples / "good" / "tools.jsonl"]
    options: dict[str, Any] = {"model": str(samples / "model"), "max_length": 512, "train_on": "last"}
    pack(PackConfig(files=files, out=tmp_path / "other", **options))
    return tmp_path / "other"


@pytest.mark.parametrize("ends", ENDS)
def test_audit_compares_sets_wherever_they_lie(
    packed: Path, other: Path, bucket: Bucket, tmp_path: Path, ends: Ends
) -> None:
    expected = succeeded(["audit", str(packed), "--diff", str(other), "--json", str(tmp_path / "d.json")], code=1)
    sides = [bucket.put(path) if where == "url" else str(path) for path, where in ((packed, ends[0]), (other, ends[1]))]
    found = succeeded(["audit", sides[0], "--diff", sides[1], "--json", f"{BUCKET}d.json"], code=1)
    names = {sides[0]: str(packed), sides[1]: str(other)}
    compared(found, expected, **names)
    compared(bucket.get("d.json"), (tmp_path / "d.json").read_bytes(), **names)


def test_audit_compares_with_what_another_trainer_prepared_and_names_its_url(
    packed: Path, bucket: Bucket, tmp_path: Path
) -> None:
    rows = [row for batch in open_shard_set(packed).iter_batches() for row in batch.to_pylist()]
    columns = {"input_ids": "input_ids", "assistant_masks": "assistant_masks", "seq_lengths": "seq_lengths"}
    table = pa.table({name: [row[key] for row in rows] for name, key in columns.items()})
    (tmp_path / "prepared").mkdir()
    pq.write_table(table, tmp_path / "prepared" / "rows.parquet")
    found = succeeded(["audit", bucket.put(packed), "--diff", bucket.put(tmp_path / "prepared")])
    assert f"{BUCKET}prepared" in found
    bucket.store.pipe_file("bucket/prepared/rows.parquet", b"PAR1 and nothing more")
    error = told(["audit", str(packed), "--diff", f"{BUCKET}prepared"]).exception
    assert (getattr(error, "code", ""), error.place) == ("damaged-dataset", f"{BUCKET}prepared/rows.parquet")
    error = told(["audit", str(packed), "--diff", f"{BUCKET}nothing"]).exception
    assert (getattr(error, "code", ""), error.place) == ("missing-file", f"{BUCKET}nothing")


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    """A directory with a suite of one case."""
    folder = tmp_path / "suites"
    folder.mkdir()
    case = {"id": "a", "tags": ["t"], "messages": [{"role": "user", "content": "What is a pier?"}]}
    (folder / "own.jsonl").write_text(json.dumps({**case, "scorers": [{"kind": "stops"}]}) + "\n")
    head = "name: own\ndescription: Of a test.\ncases: own.jsonl\nmax_new_tokens: 2\n"
    (folder / "own.yaml").write_text(head)
    return folder


@pytest.fixture
def model(samples: Path, tmp_path: Path) -> Path:
    """The samples' model with weights of no training."""
    # torch and transformers take seconds to import, which the other tests here do without.
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    place = tmp_path / "model"
    shutil.copytree(samples / "model", place)
    torch.manual_seed(5)
    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(place)).save_pretrained(place)
    return place


def test_evaluate_reads_and_writes_urls(
    sets: tuple[Path, Path], model: Path, suite: Path, bucket: Bucket, tmp_path: Path
) -> None:
    packed, trained = sets
    rows = Path(open_shard_set(packed).manifest.sources[0].path).with_name("tools.jsonl")
    local = {"--suite": suite, "--held-out": packed, "--trained-on": trained, "--against": rows}
    urls = {option: bucket.put(path) for option, path in local.items()} | {"--suite": f"{bucket.put(suite)}/own.yaml"}
    words = ["evaluate", "--model", str(model), "--threads", "1", "--json"]

    def given(places: dict[str, str]) -> list[str]:
        return [word for pair in places.items() for word in pair]

    paths = {option: str(path) for option, path in local.items()} | {"--suite": f"{suite}/own.yaml"}
    outputs = [str(tmp_path / "e.json"), "--html", str(tmp_path / "e.html")]
    expected = told([*words, *outputs, *given(paths)])
    found = told([*words, f"{BUCKET}e.json", "--html", f"{BUCKET}e.html", *given(urls)])
    assert found.exit_code == expected.exit_code == 0, f"{found.output}{found.exception}"
    names = {f"{BUCKET}suites": str(suite), urls["--held-out"]: str(packed), urls["--against"]: str(rows)}
    compared(bucket.get("e.json"), (tmp_path / "e.json").read_bytes(), **names)
    compared(bucket.get("e.html"), (tmp_path / "e.html").read_bytes(), **names)
    report = json.loads(bucket.get("e.json"))
    assert report["likelihood"]["directory"] == f"{BUCKET}packed"
    assert report["contamination"]["num_rows"] > 0


def test_train_reads_sets_and_suites_from_urls(
    sets: tuple[Path, Path], model: Path, suite: Path, bucket: Bucket, tmp_path: Path
) -> None:
    packed, trained = sets
    words = ["--model", str(model), "--max-steps", "2", "--grad-accum", "1", "--threads", "1", "--eval-every", "1"]

    def made(data: str, held: str, suite: str, name: str) -> bytes:
        out = tmp_path / name
        succeeded(["train", data, "--eval-shards", held, "--eval", suite, *words, "--out", str(out)])
        return (out / "model.safetensors").read_bytes()

    expected = made(str(trained), str(packed), f"{suite}/own.yaml", "expected")
    urls = (bucket.put(trained), bucket.put(packed), f"{bucket.put(suite)}/own.yaml")
    assert made(*urls, "found") == expected

"""Sources are added to a shard set as a new part: nothing of the old is touched, and everything reads the whole."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sftprep.config.audit import AuditConfig
from sftprep.config.pack import PackConfig
from sftprep.errors import SftprepError
from sftprep.prepare import pack as pack_module
from sftprep.prepare.audit import audit
from sftprep.prepare.pack import PackResult, pack
from sftprep.shards.read import ShardSet, open_shard_set
from sftprep.shards.write import ShardWriter
from sftprep.stages.lengths import quantiles


def rows(first: int, count: int, **extra: Any) -> list[dict[str, Any]]:
    answers = [
        {"role": "assistant", "content": f"Answer {n}. " * (1 + n % 7), **extra} for n in range(first, first + count)
    ]
    return [
        {"messages": [{"role": "user", "content": f"Question {n}?"}, answer], "chat_template_kwargs": {"k": first}}
        for n, answer in enumerate(answers, start=first)
    ]


INJECTED = {"messages": [{"role": "user", "content": "<|im_end|>"}, {"role": "assistant", "content": "No."}]}
LONG = {"messages": [{"role": "user", "content": "Go on"}, {"role": "assistant", "content": "on and on " * 200}]}


class Bench:
    """A folder with files to pack, the repository's small model, and one place for the set."""

    def __init__(self, folder: Path, samples: Path) -> None:
        self.folder, self.out = folder, folder / "out"
        self.model = folder / "model"
        shutil.copytree(samples / "model", self.model)

    def pack(self, name: str, content: list[dict[str, Any]], **options: Any) -> PackResult:
        path = self.folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in content), encoding="utf-8")
        given = {"files": (path,), "model": str(self.model), "out": self.out, "max_length": 128}
        limits = {"over_length": "drop", "max_drop": "50%", "shard_tokens": 600}
        return pack(PackConfig(**{**given, **limits, **options}))

    def refused(self, *args: Any, **options: Any) -> SftprepError:
        before = state(self.out)
        with pytest.raises(SftprepError) as caught:
            self.pack(*args, append=True, **options)
        assert state(self.out) == before
        assert not [path for path in self.folder.iterdir() if path.name.startswith(".")]
        return caught.value


@pytest.fixture
def bench(tmp_path: Path, samples: Path) -> Bench:
    return Bench(tmp_path, samples)


def state(out: Path) -> dict[str, tuple[int, int, bytes]]:
    files = (path for path in sorted(out.rglob("*")) if path.is_file())
    return {str(p.relative_to(out)): (p.stat().st_ino, p.stat().st_mtime_ns, p.read_bytes()) for p in files}


def documents_of(shards: ShardSet) -> dict[tuple[str, int], tuple[list[int], list[int], str]]:
    """Ids, mask and the template's variables by source and line."""
    found = {}
    manifest = shards.manifest
    for batch in shards.iter_batches():
        for row in batch.to_pylist():
            start = 0
            about = zip(row["seq_lengths"], row["doc_files"], row["doc_lines"], row["doc_kwargs"], strict=True)
            for length, file, line, kwargs in about:
                part = slice(start, start + length)
                place = Path(manifest.sources[file].path).name, line
                variables = json.dumps(manifest.template_kwargs[kwargs])
                assert place not in found
                found[place] = row["input_ids"][part], row["assistant_masks"][part], variables
                start += length
    return found


def test_the_old_shards_stay_as_they_are_and_the_whole_holds_both(bench: Bench) -> None:
    bench.pack("one", [*rows(0, 40), INJECTED])
    before = {name: kept for name, kept in state(bench.out).items() if name.startswith(("shards/", "model/"))}
    appended = bench.pack("two", [*rows(100, 60), INJECTED, LONG], append=True).shards
    assert len(before) > 3
    after = state(bench.out)
    assert {name: after[name] for name in before} == before
    manifest = open_shard_set(bench.out).manifest
    assert manifest == appended.manifest
    assert [shard.file for shard in manifest.shards] == sorted(n for n in after if n.startswith("shards/"))
    apart = {}
    for name, content in (("one", [*rows(0, 40), INJECTED]), ("two", [*rows(100, 60), INJECTED, LONG])):
        apart |= documents_of(bench.pack(name, content, out=bench.folder / f"apart-{name}").shards)
    assert documents_of(open_shard_set(bench.out)) == apart
    listed = [json.loads(line) for line in (bench.out / "left_out.jsonl").read_text().splitlines()]
    assert [(Path(row["file"]).name, row["code"]) for row in listed] == [
        ("one.jsonl", "control-token"),
        ("two.jsonl", "control-token"),
        ("two.jsonl", "over-length"),
    ]
    open_shard_set(bench.out).verify()


def test_every_number_of_the_manifest_is_of_both(bench: Bench) -> None:
    bench.pack("one", [*rows(0, 40), LONG])
    manifest = bench.pack("two", [*rows(100, 60), INJECTED, LONG], append=True).shards.manifest
    both = bench.pack(
        "two",
        [*rows(100, 60), INJECTED, LONG],
        files=(bench.folder / "one.jsonl", bench.folder / "two.jsonl"),
        out=bench.folder / "both",
    ).shards.manifest
    packs = {"num_packs"}
    assert manifest.counts.model_dump(exclude=packs) == both.counts.model_dump(exclude=packs)
    assert manifest.counts.num_packs == sum(shard.num_rows for shard in manifest.shards)
    assert (manifest.lengths, manifest.trained_lengths) == (both.lengths, both.trained_lengths)
    assert manifest.left_out == both.left_out
    assert manifest.over_length == both.over_length
    assert manifest.sources == both.sources
    assert manifest.waste.padding_to_longest == pytest.approx(both.waste.padding_to_longest)
    assert manifest.waste.padding_to_max_length == pytest.approx(both.waste.padding_to_max_length)
    positions = manifest.counts.num_packs * manifest.max_length
    assert manifest.waste.packing == pytest.approx(1 - manifest.counts.num_tokens / positions)
    lengths = [
        length
        for batch in open_shard_set(bench.out).iter_batches(["seq_lengths"])
        for row in batch["seq_lengths"].to_pylist()
        for length in row
    ]
    assert manifest.lengths.p90 == quantiles(np.array(lengths)).p90


def test_a_set_of_three_parts_is_audited_and_proven_and_says_what_it_is_made_of(bench: Bench) -> None:
    bench.pack("one", rows(0, 30))
    bench.pack("two", rows(100, 30), append=True)
    result = bench.pack("three", rows(200, 30), append=True)
    manifest = result.shards.manifest
    assert [part.num_sources for part in manifest.parts] == [1, 1, 1]
    assert sum(part.num_shards for part in manifest.parts) == len(manifest.shards)
    assert len({part.fingerprint for part in manifest.parts} | {manifest.fingerprint}) == 4
    found = audit(AuditConfig(directory=bench.out, prove=True, fail_on=("parity",)))
    assert found.report.passed
    assert (bench.out / "parity.json").is_file()
    assert sorted(path.name for path in (bench.out / "reports").iterdir()) == ["part-00000.json", "part-00001.json"]


def test_the_same_append_again_is_a_no_op(bench: Bench) -> None:
    bench.pack("one", rows(0, 30))
    first = bench.pack("two", rows(100, 30), append=True)
    before = state(bench.out)
    assert not first.unchanged
    assert bench.pack("two", rows(100, 30), append=True, workers=2).unchanged
    assert bench.pack("one", rows(0, 30), append=True).unchanged, "what it began with is in it"
    assert state(bench.out) == before
    with pytest.raises(SftprepError) as caught:
        bench.pack("one", rows(0, 30))
    assert caught.value.code == "output-other-shards", "without --append the call asks for another set"


def test_bytes_that_the_set_holds_are_refused_under_any_name(bench: Bench) -> None:
    bench.pack("one", rows(0, 30))
    bench.pack("two", rows(100, 30), append=True)
    error = bench.refused("again", rows(0, 30), sources=(f"two={bench.folder / 'two.jsonl'}:2",))
    assert (error.code, error.exit_code) == ("source-repeated", 2)
    assert "again.jsonl" in error.place


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"max_length": 127}, "--max-length"),
        ({"seed": 1}, "--seed"),
        ({"train_on": "last"}, "--train-on"),
        ({"packing": False}, "--packing"),
        ({"template_kwargs": {"x": 1}}, "--template-kwargs"),
    ],
)
def test_other_options_than_the_set_s_are_named(bench: Bench, options: dict[str, Any], named: str) -> None:
    bench.pack("one", rows(0, 30))
    error = bench.refused("two", rows(100, 30), **options)
    assert (error.code, error.exit_code) == ("append-differs", 2)
    assert named in error.message


@pytest.mark.parametrize(
    ("file", "old", "new", "named"),
    [
        ("chat_template.jinja", "{#-", "{#- changed", "template"),
        ("generation_config.json", "2", "2, 0", "stop_ids"),
        ("tokenizer.json", '"individual_digits": true', '"individual_digits": false', "tokenizer_sha256"),
    ],
)
def test_another_model_than_the_set_s_is_named(bench: Bench, file: str, old: str, new: str, named: str) -> None:
    bench.pack("one", rows(0, 30))
    path = bench.model / file
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    error = bench.refused("two", rows(100, 30))
    assert (error.code, named in error.message) == ("append-differs", True)


def test_rows_with_weights_go_only_where_there_is_a_column_for_them(bench: Bench) -> None:
    bench.pack("one", rows(0, 30))
    error = bench.refused("two", rows(100, 30, weight=2))
    assert (error.code, error.exit_code) == ("append-weights", 1)
    bench.pack("three", rows(200, 30, weight=2), out=bench.folder / "weighted")
    shards = bench.pack("four", rows(300, 30), out=bench.folder / "weighted", append=True).shards
    assert shards.manifest.has_weights
    assert sum(len(batch) for batch in open_shard_set(shards.directory).iter_batches(["weights"])) == shards.num_rows


@pytest.mark.parametrize("options", [{"overwrite": True}, {"num_rows": 9}])
def test_options_that_contradict_it_are_refused(bench: Bench, options: dict[str, Any]) -> None:
    bench.pack("one", rows(0, 30))
    with pytest.raises(ValueError, match="--append keeps what is there"):
        bench.pack("two", rows(100, 30), append=True, **options)


def test_there_must_be_a_set_to_append_to(bench: Bench) -> None:
    assert bench.refused("one", rows(0, 3)).code == "no-manifest"


def test_an_append_that_is_stopped_leaves_the_set_and_is_gone_on_with(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.pack("one", rows(0, 30))
    before = state(bench.out)
    with monkeypatch.context() as broken:
        broken.setattr(ShardWriter, "publish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            bench.pack("two", rows(100, 30), append=True)
    assert state(bench.out) == before
    compile_chunks = pack_module.compile_chunks
    asked: list[Any] = []

    def counting(unread: Any, **job: Any) -> Any:
        return compile_chunks((asked.append(chunk) or chunk for chunk in unread), **job)

    monkeypatch.setattr(pack_module, "compile_chunks", counting)
    assert bench.pack("two", rows(100, 30), append=True).shards.manifest.counts.num_documents == 60
    assert asked == [], "its chunks were kept"


def test_where_a_file_can_have_no_second_name_it_is_copied(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", none)
    bench.pack("one", rows(0, 30))
    before = {name: kept[1:] for name, kept in state(bench.out).items() if name.startswith("shards/")}
    bench.pack("two", rows(100, 30), append=True)
    after = {name: kept[1:] for name, kept in state(bench.out).items() if name in before}
    assert after == before, "bytes and times"

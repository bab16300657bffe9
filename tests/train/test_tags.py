"""A run tells its loss apart by what rows say under a key of their own, read from the files that were packed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from sftprep.config.pack import PackConfig
from sftprep.config.train import TrainConfig
from sftprep.errors import SftprepError
from sftprep.prepare.pack import pack
from sftprep.shards.manifest import Manifest
from sftprep.shards.read import open_shard_set
from sftprep.train.run import train
from sftprep.train.tags import read_tags
from tests.train.runs import metrics_of


def _row(number: int, **keys: Any) -> str:
    said = f"Aye. Pier {number} is open. " + "Fair winds. " * (number % 3)
    talk = [{"role": "user", "content": f"Is pier {number} open?"}, {"role": "assistant", "content": said.strip()}]
    return json.dumps({"messages": talk, **keys})


def _packed(samples: Path, place: Path, **rows: list[str]) -> Path:
    for name, lines in rows.items():
        (place / f"{name}.jsonl").write_text("".join(f"{line}\n" for line in lines))
    files = tuple(place / f"{name}.jsonl" for name in rows)
    pack(PackConfig(files=files, model=str(samples / "model"), out=place / "set", max_length=128))
    return place / "set"


def _train(data: Path, samples: Path, out: Path, **options: Any) -> list[dict[str, Any]]:
    settings = {"init": "random", "grad_accum": 2, "lr": 1e-3, "device": "cpu", "threads": 1} | options
    config = TrainConfig(data=data, model=str(samples / "model"), out=out, **settings)
    train(config, console=Console(quiet=True))
    return metrics_of(out / "metrics.jsonl")


@pytest.fixture
def tagged(samples: Path, tmp_path: Path) -> Path:
    """Blank lines, rows without the key, a number, two files that share a value."""
    first = [_row(0, lang="en"), "", _row(1, lang="fr"), _row(2), _row(3, lang="en")]
    second = [_row(number, lang="fr" if number % 2 else 7) for number in range(4, 12)]
    return _packed(samples, tmp_path, first=first, second=second)


def _trained_by_hand(data: Path) -> dict[str, int]:
    """Of each value, from the rows' own lines."""
    found: dict[str, int] = {}
    shards = open_shard_set(data)
    sources = [Path(source.path).read_text().split("\n") for source in shards.manifest.sources]
    for batch in shards.iter_batches():
        for row in batch.to_pylist():
            start = 0
            for length, file, line in zip(row["seq_lengths"], row["doc_files"], row["doc_lines"], strict=True):
                said = json.loads(sources[file][line - 1]).get("lang")
                value = "(none)" if said is None else str(said)
                found[value] = found.get(value, 0) + sum(row["assistant_masks"][start : start + length])
                start += length
    return found


@pytest.mark.parametrize("options", [{}, {"attention": "unpack"}], ids=["packed", "unpacked"])
def test_trained_tokens_and_their_loss_are_told_by_tag_and_add_up(
    tagged: Path, samples: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    lines = _train(tagged, samples, tmp_path / "out", tag="lang", **options)
    totals: dict[str, int] = {}
    for line in lines:
        for name, count in line["trained_by_tag"].items():
            totals[name] = totals.get(name, 0) + count
        for what in ("tag", "source"):
            counts, nll = line[f"trained_by_{what}"], line[f"nll_by_{what}"]
            assert sum(counts.values()) == line["num_trained"]
            total = sum(nll[name] * count for name, count in counts.items())
            assert total == pytest.approx(line["nll"] * line["num_trained"], rel=1e-6)
    assert totals == _trained_by_hand(tagged)
    assert set(totals) == {"en", "fr", "7", "(none)"}
    page = (tmp_path / "out" / "loss.html").read_text()
    assert "by tag, at the start and at the end" in page
    assert "<td>fr</td>" in page


def test_tags_change_nothing_but_what_is_told(tagged: Path, samples: Path, tmp_path: Path) -> None:
    plain = _train(tagged, samples, tmp_path / "plain")
    told = _train(tagged, samples, tmp_path / "told", tag="lang")
    assert [line["nll_by_source"] for line in told] == [line["nll_by_source"] for line in plain]
    assert plain[0]["nll_by_tag"] is None
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("plain", "told")]
    assert weights[0] == weights[1]


def test_the_values_of_the_most_rows_are_told_apart_and_the_others_are_one(samples: Path, tmp_path: Path) -> None:
    rows = [_row(number, lang=f"l{min(number, 30 - number)}") for number in range(31)]
    rows.append(_row(31, lang=["a", "b"]))
    manifest = open_shard_set(_packed(samples, tmp_path, rows=rows)).manifest
    assert read_tags(manifest, "lang").names == ("(none)", *(f"l{number}" for number in range(15)), "l15", '["a", "b"]')
    crowd = [_row(number, lang=f"l{number}") for number in range(40)] + [_row(40 + n, lang="l39") for n in range(3)]
    (tmp_path / "crowd").mkdir()
    tags = read_tags(open_shard_set(_packed(samples, tmp_path / "crowd", rows=crowd)).manifest, "lang")
    assert tags.names == ("(none)", "l39", *(f"l{number}" for number in range(19)), "(other)")
    assert tags.by_line[0][[1, 20, 21, 40, 43]].tolist() == [2, 21, 21, 1, 1]


@pytest.mark.parametrize("how", ["gone", "changed"])
def test_sources_that_are_gone_or_changed_are_named_before_the_first_step(
    tagged: Path, samples: Path, tmp_path: Path, how: str
) -> None:
    source = tmp_path / "second.jsonl"
    if how == "gone":
        source.unlink()
    else:
        source.write_text(source.read_text().replace("fr", "de"))
    with pytest.raises(SftprepError, match="--tag reads the files") as raised:
        _train(tagged, samples, tmp_path / "out", tag="lang")
    assert raised.value.code == {"gone": "missing-file", "changed": "source-changed"}[how]
    assert "second.jsonl" in raised.value.place
    assert not list(tmp_path.glob("out*"))
    assert read_tags(Manifest.model_validate_json((tagged / "manifest.json").read_bytes()), None).names == ()

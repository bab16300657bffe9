"""Two prepared sets side by side (C7): aligned by content, the first differing token, the rule behind it, totals."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer

from sftprep.config.pack import PackConfig
from sftprep.data import IGNORE_INDEX, SpanKind
from sftprep.errors import SftprepError
from sftprep.prepare.diff import diff
from sftprep.prepare.pack import pack
from sftprep.reports.diff_json import RULE_TEXTS, DiffReport
from sftprep.shards.read import ShardSet, open_shard_set

Row = dict[str, Any]
SAMPLES = Path(__file__).resolve().parent.parent.parent / "data_samples"


@pytest.fixture(scope="module")
def shards(samples: Path, tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    out = tmp_path_factory.mktemp("diff") / "set"
    files = tuple(sorted((samples / "good").glob("*.jsonl")))
    return pack(PackConfig(files=files, model=str(samples / "model"), out=out, max_length=512)).shards


def documents(shards: ShardSet) -> Iterator[Row]:
    """Each document as another trainer would hold it, with the reason of every token beside it."""
    for batch in shards.iter_batches():
        for row in batch.to_pylist():
            stops = [*row["span_starts"][1:], len(row["input_ids"])]
            spans = zip(row["span_starts"], stops, row["span_kinds"], strict=True)
            kinds = [kind for start, stop, kind in spans for _ in range(start, stop)]
            borders = [0, *itertools.accumulate(row["seq_lengths"])]
            for start, stop in itertools.pairwise(borders):
                ids, mask = row["input_ids"][start:stop], row["assistant_masks"][start:stop]
                labels = [i if m else IGNORE_INDEX for i, m in zip(ids, mask, strict=True)]
                yield {"input_ids": ids, "labels": labels, "kinds": kinds[start:stop]}


def written(rows: list[Row], path: Path, *names: str) -> Path:
    columns = {name: [row[name] for row in rows] for name in names or ("input_ids", "labels")}
    pq.write_table(pa.table(columns), path)
    return path


def peak_of_diff(folder: Path, column: str, *, count: int, length: int = 512) -> int:
    """Bytes that Python and numpy hold at most while two sets are compared whose last tokens differ in a column."""
    columns = {
        "input_ids": np.random.default_rng(0).integers(0, 1000, (count, length), dtype=np.int32),
        "labels": np.full((count, length), IGNORE_INDEX, np.int32),
    }
    paths = folder / f"left-{count}.parquet", folder / f"right-{count}.parquet"
    for path in paths:
        pq.write_table(pa.table({name: list(rows) for name, rows in columns.items()}), path)
        columns[column][:, -1] = columns["input_ids"][:, -1] if column == "labels" else 1000
    tracemalloc.start()
    report = diff(*paths)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert report.num_masks_differ + report.num_ids_differ == count
    return peak


@pytest.mark.parametrize("column", ["labels", "input_ids"])
def test_memory_grows_with_the_documents_a_little_and_not_with_their_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, column: str
) -> None:
    monkeypatch.setattr("sftprep.stages.align._BUCKETS", 1 << 14)  # the same for any set, and it would hide the rest
    peak_of_diff(tmp_path, column, count=8)  # what is loaded once
    small, large = (peak_of_diff(tmp_path, column, count=count) for count in (256, 768))
    assert (large - small) / 512 < 1536, "ids, masks and both sides' parts of 512 tokens would be five kilobytes"


def test_a_set_is_the_same_as_itself_and_as_its_rows_in_any_order(shards: ShardSet, tmp_path: Path) -> None:
    assert diff(shards.directory, shards.directory).same
    rows = list(documents(shards))
    shuffled = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))]
    report = diff(shards.directory, written(shuffled, tmp_path / "other.parquet"))
    assert report.same
    assert report.num_identical == report.left.num_documents == report.right.num_documents == len(rows)
    assert report.left.num_trained == report.right.num_trained > 0


def test_a_document_less_is_on_one_side_only(shards: ShardSet, tmp_path: Path) -> None:
    report = diff(written(list(documents(shards))[1:], tmp_path / "other.parquet"), shards.directory)
    assert (report.num_only_left, report.num_only_right, report.same) == (0, 1, False)
    assert report.only_right[0].startswith("row 0, document 0 (")


Edit = Callable[[Row], None]


def at(row: Row, kind: SpanKind) -> int:
    return int(row["kinds"].index(kind))


def train(row: Row, position: int) -> None:
    row["labels"][position] = row["input_ids"][position]


def mask_the_stop_token(row: Row) -> None:
    row["labels"][at(row, SpanKind.STOP)] = IGNORE_INDEX


def train_everything(row: Row) -> None:
    row["labels"] = list(row["input_ids"])


def train_the_first_token(row: Row) -> None:
    train(row, 0)


def train_a_message_of_weight_0(row: Row) -> None:
    train(row, at(row, SpanKind.WEIGHT_ZERO))


def mask_an_answer(row: Row) -> None:
    first = at(row, SpanKind.COMPLETION)
    size = [*row["kinds"][first:], -1].index(SpanKind.STOP)
    row["labels"][first : first + size] = [IGNORE_INDEX] * size


def train_the_header(row: Row) -> None:
    train(row, at(row, SpanKind.COMPLETION) - 1)


def train_the_user(row: Row) -> None:
    train(row, at(row, SpanKind.USER))


def mask_the_first_answer_token(row: Row) -> None:
    row["labels"][at(row, SpanKind.COMPLETION)] = IGNORE_INDEX


def mask_inside_the_answer(row: Row) -> None:
    row["labels"][at(row, SpanKind.COMPLETION) + 1] = IGNORE_INDEX


def train_the_separator(row: Row) -> None:
    train(row, at(row, SpanKind.SEPARATOR))


def double_the_first_token(row: Row) -> None:
    row["input_ids"].insert(0, row["input_ids"][0])
    row["labels"].insert(0, IGNORE_INDEX)


def append_a_stop_token(row: Row) -> None:
    row["input_ids"].append(2)
    row["labels"].append(2)


def truncate(row: Row) -> None:
    del row["input_ids"][20:], row["labels"][20:]


def write_another_header(row: Row) -> None:
    row["input_ids"][1:1] = [70, 71]
    row["labels"][1:1] = [IGNORE_INDEX] * 2


def change_the_answer(row: Row) -> None:
    where = at(row, SpanKind.COMPLETION) + 1
    row["input_ids"][where] = 65 if row["input_ids"][where] != 65 else 66
    train(row, where)


def spell_out_a_token(row: Row) -> None:
    """A token of an answer as the tokens of its characters."""
    tokenizer = Tokenizer.from_file(str(SAMPLES / "model" / "tokenizer.json"))
    where = at(row, SpanKind.COMPLETION)
    text = tokenizer.decode([row["input_ids"][where]])
    spelled = [i for character in text for i in tokenizer.encode(character, add_special_tokens=False).ids]
    assert len(spelled) > 1
    assert tokenizer.decode(spelled) == text
    row["input_ids"][where : where + 1] = spelled
    row["labels"][where : where + 1] = spelled


RULES: dict[str, tuple[Edit, str, str]] = {
    "stop token masked (B1, B2)": (mask_the_stop_token, "stop-untrained", "left"),
    "everything trained (A3)": (train_everything, "everything-trained", "right"),
    "first token trained (F4)": (train_the_first_token, "first-token-trained", "right"),
    "a message of weight 0 trained (L1)": (train_a_message_of_weight_0, "context-trained", "right"),
    "an answer untrained": (mask_an_answer, "answer-untrained", "left"),
    "mask starts in the header (A7)": (train_the_header, "scaffold-trained", "right"),
    "user trained (A2)": (train_the_user, "other-role-trained", "right"),
    "first answer token lost (A9)": (mask_the_first_answer_token, "answer-start-untrained", "left"),
    "a hole in the answer": (mask_inside_the_answer, "answer-untrained", "left"),
    "separator trained (B8)": (train_the_separator, "separator-trained", "right"),
    "double first token (C3)": (double_the_first_token, "token-prepended", ""),
    "stop token appended (B6)": (append_a_stop_token, "token-appended", ""),
    "truncated (G1)": (truncate, "truncated", ""),
    "other tokens of the same text (A6)": (spell_out_a_token, "tokenised-differently", ""),
    "another template (C1)": (write_another_header, "template-text-differs", ""),
    "another answer": (change_the_answer, "content-differs", ""),
}


def compared(shards: ShardSet, path: Path, edit: Edit) -> DiffReport:
    rows = list(documents(shards))
    wanted = {SpanKind.SEPARATOR} | ({SpanKind.WEIGHT_ZERO} if edit is train_a_message_of_weight_0 else set())
    edited = next(row for row in rows if len(row["input_ids"]) > 40 and wanted <= set(row["kinds"]))
    edit(edited)
    return diff(shards.directory, written(rows, path))


@pytest.mark.parametrize("name", RULES)
def test_the_rule_behind_each_difference_is_named_c7(shards: ShardSet, tmp_path: Path, name: str) -> None:
    edit, rule, side = RULES[name]
    report = compared(shards, tmp_path / "other.parquet", edit)
    assert [(found.rule, found.trained_by, found.num_documents) for found in report.rules] == [(rule, side, 1)]
    assert report.num_masks_differ + report.num_ids_differ == 1
    assert report.num_identical == report.left.num_documents - 1
    assert report.num_only_left == report.num_only_right == 0


FROM_THE_START = {
    "tokenised-differently",
    "everything-trained",
    "first-token-trained",
    "token-prepended",
    "template-text-differs",
}


@pytest.mark.parametrize("name", [name for name, (_, rule, _) in RULES.items() if rule not in FROM_THE_START])
def test_the_witness_of_each_rule_sees_a_comparison_that_looks_at_the_wrong_token_c7(
    shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("sftprep.prepare.diff.first_difference", lambda *_: 0)
    monkeypatch.setattr("sftprep.prepare.diff_rules.first_difference", lambda *_: 0)
    with pytest.raises(AssertionError):
        test_the_rule_behind_each_difference_is_named_c7(shards, tmp_path, name)


def test_the_first_differing_token_is_shown_with_both_sides(shards: ShardSet, tmp_path: Path) -> None:
    report = compared(shards, tmp_path / "other.parquet", mask_the_stop_token)
    (shown,) = report.differences
    assert shown.reason == "stop"
    assert shown.left_text.startswith("⟦<|im_end|>⟧")
    assert shown.right_text.startswith("<|im_end|>")
    assert ".jsonl:" in shown.left
    assert report.trained_only_left == {"stop": 1}
    assert report.trained_only_right == {}


def test_tokens_trained_on_one_side_are_counted_by_reason(shards: ShardSet, tmp_path: Path) -> None:
    rows = list(documents(shards))
    for row in rows:
        train_everything(row)
    report = diff(written(rows, tmp_path / "other.parquet"), shards.directory)
    kinds = open_shard_set(shards.directory).manifest.counts.tokens_by_kind
    expected = {kind: count for kind, count in kinds.items() if count and kind not in ("completion", "stop")}
    assert report.trained_only_left == expected
    assert report.num_masks_differ == len(rows)


def packed_rows(shards: ShardSet) -> list[Row]:
    return [row for batch in shards.iter_batches() for row in batch.to_pylist()]


def with_positions(row: Row) -> Row:
    return {**row, "position_ids": [n for size in row["seq_lengths"] for n in range(size)]}


def with_padded_positions(row: Row) -> Row:
    """Packed and padded as LLaMA-Factory does without neat_packing: padding is attended to, at positions of 0."""
    packed = with_positions(row)
    pad = 512 - len(row["input_ids"])
    return {
        "input_ids": row["input_ids"] + [0] * pad,
        "assistant_masks": row["assistant_masks"] + [0] * pad,
        "position_ids": packed["position_ids"] + [0] * pad,
        "attention_mask": [1] * 512,
    }


def with_numbered_mask(row: Row) -> Row:
    """Documents numbered in the attention mask, and padding on the right."""
    mask = [number for number, size in enumerate(row["seq_lengths"], 1) for _ in range(size)]
    pad = 512 - len(mask)
    labels = [i if m else IGNORE_INDEX for i, m in zip(row["input_ids"], row["assistant_masks"], strict=True)]
    return {
        "input_ids": row["input_ids"] + [0] * pad,
        "labels": labels + [IGNORE_INDEX] * pad,
        "attention_mask": mask + [0] * pad,
    }


@pytest.mark.parametrize(
    ("change", "names"),
    [
        (dict, ("input_ids", "assistant_masks", "seq_lengths")),
        (with_positions, ("input_ids", "assistant_masks", "position_ids")),
        (with_padded_positions, ("input_ids", "assistant_masks", "position_ids", "attention_mask")),
        (with_numbered_mask, ("input_ids", "labels", "attention_mask")),
    ],
    ids=["seq_lengths", "position_ids", "padded_positions", "attention_mask"],
)
def test_packed_rows_of_other_trainers_are_cut_into_their_documents(
    shards: ShardSet, tmp_path: Path, change: Callable[[Row], Row], names: tuple[str, ...]
) -> None:
    rows = [change(row) for row in packed_rows(shards)]
    report = diff(shards.directory, written(rows, tmp_path / "other.parquet", *names))
    assert report.same, report
    assert report.right.num_documents == shards.manifest.counts.num_documents


def test_left_padding_is_no_document(tmp_path: Path) -> None:
    rows = [{"input_ids": [0, 0, 5, 6], "labels": [-100, -100, -100, 6], "attention_mask": [0, 0, 1, 1]}]
    path = written(rows, tmp_path / "a.parquet", "input_ids", "labels", "attention_mask")
    report = diff(path, path)
    assert (report.left.num_documents, report.left.num_tokens, report.same) == (1, 2, True)


def test_a_border_inside_left_padding_is_kept(tmp_path: Path) -> None:
    row = {"input_ids": [0, 0, 5, 6], "assistant_masks": [0, 0, 0, 1], "attention_mask": [0, 0, 1, 1]}
    rows = [{**row, "position_ids": [0, 1, 2, 3]}] * 2
    path = written(rows, tmp_path / "a.parquet", *rows[0])
    report = diff(path, path)
    assert (report.left.num_documents, report.left.num_tokens) == (2, 4)


def test_a_directory_that_datasets_saved_is_read(shards: ShardSet, tmp_path: Path) -> None:
    rows = [{"input_ids": row["input_ids"], "labels": row["labels"]} for row in documents(shards)]
    whole = datasets.Dataset.from_list(rows)
    whole.save_to_disk(str(tmp_path / "one"), num_shards=2)
    assert diff(shards.directory, tmp_path / "one").same
    datasets.DatasetDict({"train": whole}).save_to_disk(str(tmp_path / "dict"))
    assert diff(shards.directory, tmp_path / "dict").same
    datasets.DatasetDict({"train": whole, "test": whole}).save_to_disk(str(tmp_path / "two"))
    with pytest.raises(SftprepError) as caught:
        diff(shards.directory, tmp_path / "two")
    assert caught.value.code == "several-splits"
    assert diff(shards.directory, tmp_path / "two" / "train").same


def test_a_directory_that_holds_one_saved_dataset_stands_for_it(shards: ShardSet, tmp_path: Path) -> None:
    """As Axolotl's dataset_prepared_path does, under the name of a hash."""
    rows = [{"input_ids": row["input_ids"], "labels": row["labels"]} for row in documents(shards)]
    datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "prepared" / "0a1b"))
    assert diff(shards.directory, tmp_path / "prepared").same
    datasets.Dataset.from_list(rows[:1]).save_to_disk(str(tmp_path / "prepared" / "2c3d"))
    with pytest.raises(SftprepError) as caught:
        diff(shards.directory, tmp_path / "prepared")
    assert (caught.value.code, "0a1b, 2c3d" in str(caught.value)) == ("several-splits", True)


BAD: dict[str, tuple[list[Row], tuple[str, ...], str]] = {
    "no ids": ([{"labels": [1]}], ("labels",), "no-input-ids"),
    "no labels": ([{"input_ids": [1]}], ("input_ids",), "no-labels"),
    "shifted": ([{"input_ids": [1, 2, 3], "labels": [2, 3, -100]}], ("input_ids", "labels"), "labels-shifted"),
    "other labels": ([{"input_ids": [1, 2, 3], "labels": [9, 9, 9]}], ("input_ids", "labels"), "labels-differ"),
    "lengths": ([{"input_ids": [1, 2, 3], "labels": [1]}], ("input_ids", "labels"), "row-lengths-differ"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_compared_is_an_error_with_a_name(tmp_path: Path, name: str) -> None:
    rows, names, code = BAD[name]
    path = written(rows, tmp_path / "bad.parquet", *names)
    with pytest.raises(SftprepError) as caught:
        diff(path, path)
    assert caught.value.code == code


def test_no_dataset_and_a_broken_one_are_errors_with_names(tmp_path: Path) -> None:
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 not really")
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "state.json").write_text("{}")
    codes = {"none": "missing-file", "broken.parquet": "damaged-dataset", "saved": "damaged-dataset"}
    for path, code in ((tmp_path / name, code) for name, code in codes.items()):
        with pytest.raises(SftprepError) as caught:
            diff(path, path)
        assert caught.value.code == code


def test_every_rule_has_a_text() -> None:
    assert {rule for _, rule, _ in RULES.values()} | {"mask-differs", "ids-differ"} == set(RULE_TEXTS)


@pytest.mark.parametrize(
    ("edit", "rule"), [(mask_the_stop_token, "mask-differs"), (change_the_answer, "ids-differ")], ids=["mask", "ids"]
)
def test_without_a_shard_set_the_reasons_are_unknown_and_the_place_is_not_c7(
    shards: ShardSet, tmp_path: Path, edit: Edit, rule: str
) -> None:
    plain = written(list(documents(shards)), tmp_path / "plain.parquet")
    rows = list(documents(shards))
    edit(rows[0])
    report = diff(plain, written(rows, tmp_path / "edited.parquet"))
    assert [(found.rule, found.num_documents) for found in report.rules] == [(rule, 1)]
    kinds = next(documents(shards))["kinds"]
    place = kinds.index(SpanKind.STOP) if rule == "mask-differs" else kinds.index(SpanKind.COMPLETION) + 1
    assert [found.position for found in report.differences] == [place]


def test_the_command_compares_writes_json_and_exits_by_the_result(shards: ShardSet, tmp_path: Path) -> None:
    rows = list(documents(shards))
    mask_the_stop_token(rows[0])
    other = written(rows, tmp_path / "other.parquet")
    command = [sys.executable, "-m", "sftprep", "audit", "--diff", str(shards.directory)]
    done = subprocess.run(
        [*command, str(other), "--json", str(tmp_path / "d.json")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stderr
    assert "1 x stop-untrained" in done.stdout
    assert json.loads((tmp_path / "d.json").read_text())["num_masks_differ"] == 1
    same = subprocess.run([*command, str(shards.directory)], capture_output=True, text=True, check=False)
    assert (same.returncode, same.stdout.splitlines()[-1]) == (0, "same")


def test_a_full_temporary_directory_is_an_error_with_a_name_and_nothing_stays(shards: ShardSet, tmp_path: Path) -> None:
    command = f"ulimit -f 1; {sys.executable} -m sftprep audit {shards.directory} --diff {shards.directory}"
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, env=environment)
    assert (done.returncode, "[disk-full]" in done.stderr) == (2, True), done.stderr
    assert "TMPDIR" in done.stderr
    assert list(tmp_path.iterdir()) == []

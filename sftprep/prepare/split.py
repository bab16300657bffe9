"""Split chat data into training and held-out rows that share no near duplicate.

from pathlib import Path
from sftprep.config.split import SplitConfig
from sftprep.prepare.split import split

report = split(SplitConfig(files=(Path("chats.jsonl"),), out=Path("parts"), held_out="5%"))
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from sftprep.config.places import unwritten
from sftprep.config.split import SplitConfig
from sftprep.errors import DataError, OutputError, SourceError
from sftprep.prepare.quality_leaks import HeldOut
from sftprep.prepare.quality_rows import View, rereadable
from sftprep.prepare.validate import read_conversations
from sftprep.reports.publication import json_bytes
from sftprep.reports.quality_json import Leakage
from sftprep.reports.quality_split import SplitReport
from sftprep.reports.wording import counted
from sftprep.sources.compressed import OnBytes
from sftprep.sources.lines import content_name, read_rows
from sftprep.stages.dialogue import RowText, row_text
from sftprep.stages.leakage import SetIndex, build_index, similar
from sftprep.stages.near_duplicates import SHINGLE_WORDS, Hashes
from sftprep.stages.split import Labels, Rows, draw_held_out, merge_labels
from sftprep.stages.words import ngram_hashes, word_hashes, words

_KINDS: Final = ("prompts", "conversation")


def split(config: SplitConfig, *, on_bytes: OnBytes | None = None) -> SplitReport:
    """Write train.jsonl, eval.jsonl and split.json into a new directory: all of it, or nothing.

    Every row is in one of the two files as it came, byte for byte, in the order of the inputs. Rows whose prompts or
    conversations are near duplicates are in the same file.

    Raises:
        OutputError: the directory is in use, or cannot be written.
        DataError: `bad-rows`, `nothing-to-hold-out`.
        SourceError: a file is empty, damaged, of an uncertain format, or changes meanwhile (`source-changed`).
    """
    _check_out(config.out)
    config = config.model_copy(update={"files": rereadable(config.files)})
    names = {path: content_name(path) for path in config.files}
    rows = list_clusters(config, on_bytes=on_bytes)
    plan = _plan(config, rows)
    with _staged(config.out) as folder:
        by_file = _write(config, plan.held, folder)
        report = _report(config, plan, by_file)
        _write_bytes(folder / "split.json", json_bytes(report))
        for path, name in names.items():
            if content_name(path) != name:
                hint = "run again when nothing writes to it"
                raise SourceError(
                    "the file changed while it was read", code="source-changed", place=str(path), hint=hint
                )
    return report


@dataclass(frozen=True, slots=True)
class _Plan:
    labels: Labels
    held: Rows
    num_asked: int
    num_merged: int
    num_barred: int
    overlap: Leakage


def list_clusters(config: SplitConfig, *, on_bytes: OnBytes | None = None) -> Labels:
    """The cluster of every row, int64 `[num_rows]`: near duplicate prompts or conversations, chains included."""
    views = {kind: View() for kind in _KINDS}
    for row in _texts(config, on_bytes=on_bytes):
        for kind, view in views.items():
            view.add(getattr(row, kind))
    return merge_labels([view.clusters(threshold=config.near_duplicate).labels for view in views.values()])


def _plan(config: SplitConfig, labels: Labels) -> _Plan:
    """Draw, then prove: pairs that the exact check finds across the border are joined and the draw is repeated.

    With `no_overlap` clusters that share n-grams with others are barred, and others are drawn in their place.
    """
    num_asked = config.num_held_out(len(labels))
    merged = 0
    barred = np.zeros(len(labels), np.bool_)
    while True:
        held = draw_held_out(labels, num_rows=num_asked, seed=config.seed, barred=barred)
        if not held.any() or held.all():
            raise _nothing_to_hold_out(config, num_asked, labels)
        across = _across(config, held)
        if across:
            merged += len(across)
            labels = _joined(labels, across)
            continue
        overlap = _overlap(config, held)
        shared = overlap.overlapping() if config.no_overlap else []
        if not shared:
            return _Plan(labels, held, num_asked, merged, int(barred.sum()), overlap.report())
        barred |= np.isin(labels, labels[np.flatnonzero(held)[shared]])


def _nothing_to_hold_out(config: SplitConfig, num_asked: int, labels: Labels) -> DataError:
    if num_asked >= len(labels):
        raise DataError(
            f"{num_asked:,} of {counted(len(labels), 'row')} cannot be held out: none would be left to train on",
            code="nothing-to-hold-out",
            place=", ".join(map(str, config.files)),
            hint="hold out fewer: --eval takes a number of rows, or a share such as 5%",
        )
    alone = " that shares no n-gram with another" if config.no_overlap else ""
    hint = "hold out more rows, or remove the near duplicates first: sftprep validate --quality shows them"
    return DataError(
        f"no cluster of near duplicates{alone} fits into {num_asked:,} held-out rows of {len(labels):,}",
        code="nothing-to-hold-out",
        place=", ".join(map(str, config.files)),
        hint=f"{hint}; or leave out --no-overlap" if config.no_overlap else hint,
    )


def _joined(labels: Labels, pairs: list[tuple[int, int]]) -> Labels:
    """Labels with the clusters of each pair joined."""
    joined = labels
    for one, other in pairs:
        low, high = sorted((joined[one], joined[other]))
        joined = np.where(joined == high, low, joined)
    return joined


def _across(config: SplitConfig, held: Rows) -> list[tuple[int, int]]:
    """Pairs of a held-out and a training row that are near duplicates, every such row compared exactly."""
    owners = np.flatnonzero(held)
    kept: dict[str, list[Hashes]] = {kind: [] for kind in _KINDS}
    for number, row in enumerate(_texts(config)):
        if held[number]:
            for kind in _KINDS:
                kept[kind].append(_shingles(getattr(row, kind)))
    indexes: dict[str, SetIndex] = {kind: build_index(sets) for kind, sets in kept.items()}
    pairs = set()
    for number, row in enumerate(_texts(config)):
        if not held[number]:
            for kind, index in indexes.items():
                found = similar(index, _shingles(getattr(row, kind)), threshold=config.near_duplicate)
                pairs |= {(int(owners[match.owner]), number) for match in found}
    return sorted(pairs)


def _overlap(config: SplitConfig, held: Rows) -> HeldOut:
    """What `sftprep validate train.jsonl --against eval.jsonl` will say of the parts."""
    rows = (row for number, row in enumerate(_texts(config)) if held[number])
    held_out = HeldOut.of(rows, files=[str(path) for path in config.files], threshold=config.near_duplicate)
    for number, row in enumerate(_texts(config)):
        if not held[number]:
            texts = {"prompts": row.prompts, "conversations": row.conversation}
            held_out.compare(row, shingles={kind: _shingles(text) for kind, text in texts.items()})
    return held_out


def _shingles(text: str) -> Hashes:
    return ngram_hashes(word_hashes(words(text)), n=SHINGLE_WORDS)


def _texts(config: SplitConfig, *, on_bytes: OnBytes | None = None) -> Iterator[RowText]:
    """The texts of every row. DataError at the first row that has an error: it could not be compared."""
    for path in config.files:
        for row in read_conversations(path, name=str(path), format=config.format, on_bytes=on_bytes):
            if row.conversation is None:
                raise DataError(
                    "the row has errors, so that it cannot be compared",
                    code="bad-rows",
                    place=str(row.address),
                    hint="sftprep validate FILE --good GOOD.jsonl keeps the rows without errors: split those",
                )
            yield row_text(row.conversation)


def _check_out(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        hint = "name a new or empty directory"
        raise OutputError("the directory is in use", code="output-not-empty", place=str(out), hint=hint)


@contextmanager
def _staged(out: Path) -> Iterator[Path]:
    """A directory under a temporary name, renamed when the block ends well, removed when it does not."""
    staged = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        staged.mkdir(parents=True)
        yield staged
        staged.replace(out)
    except OSError as error:
        raise unwritten(out, error) from error
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _write(config: SplitConfig, held: Rows, folder: Path) -> Counter[str]:
    """Every row into its file; held-out rows by input file."""
    by_file: Counter[str] = Counter({str(path): 0 for path in config.files})
    with ExitStack() as stack:
        train, evaluation = (stack.enter_context((folder / f"{name}.jsonl").open("wb")) for name in ("train", "eval"))
        raws = (raw for path in config.files for raw in read_rows(path, name=str(path)))
        for is_held, raw in zip(held.tolist(), raws, strict=True):
            # An item of a JSON array may hold line breaks, between its tokens only: a row is one line.
            (evaluation if is_held else train).write(raw.raw.replace(b"\n", b" ") + b"\n")
            by_file[raw.address.file] += is_held
        for file in (train, evaluation):
            file.flush()
            os.fsync(file.fileno())
    return by_file


def _write_bytes(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _report(config: SplitConfig, plan: _Plan, by_file: Counter[str]) -> SplitReport:
    _, sizes = np.unique(plan.labels, return_counts=True)
    num_eval = int(plan.held.sum())
    return SplitReport(
        out=str(config.out),
        files=[str(path) for path in config.files],
        seed=config.seed,
        near_duplicate=config.near_duplicate,
        num_rows=len(plan.held),
        num_train=len(plan.held) - num_eval,
        num_eval=num_eval,
        num_asked=plan.num_asked,
        num_clusters=len(sizes),
        largest_cluster=int(sizes.max()),
        num_merged=plan.num_merged,
        num_leaks=0,
        ngram=plan.overlap.ngram,
        num_overlapping=plan.overlap.num_overlapping,
        num_barred=plan.num_barred,
        eval_by_file=dict(by_file),
    )

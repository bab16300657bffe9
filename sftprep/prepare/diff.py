"""Compare two prepared sets document by document: what the same chats became, here and there, and by which rule.

from sftprep.prepare.diff import diff

report = diff(Path("packed"), Path("other/prepared"))
report.rules
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from sftprep.data import SpanKind
from sftprep.prepare.audit_tally import audit_facts
from sftprep.prepare.diff_rules import Rule, id_rule, mask_rule
from sftprep.reports.diff_json import Difference, DiffReport, RuleCount, SideCount
from sftprep.shards.read import ShardSet, open_shard_set
from sftprep.shards.schema import MANIFEST_NAME
from sftprep.sources.prepared import read_prepared
from sftprep.stages.align import Alignment, TokenDocuments, align, first_difference
from sftprep.stages.mask_audit import readable_rows

_COLUMNS: Final = (
    "input_ids",
    "assistant_masks",
    "seq_lengths",
    "span_starts",
    "span_kinds",
    "doc_files",
    "doc_lines",
)
_SHOWN: Final = 10
_SHOWN_A_RULE: Final = 2
_SHOWN_TOKENS: Final = 12

Kinds = npt.NDArray[np.int8]


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two sets: `kinds` int8 `[tokens]` where it is a shard set; of documents: row and origin."""

    path: Path
    docs: TokenDocuments
    rows: npt.NDArray[np.int64]
    kinds: Kinds | None = None
    origins: Sequence[str] = ()

    def place(self, number: int) -> str:
        """Where a document is."""
        row = int(self.rows[number])
        document = number - int(np.searchsorted(self.rows, row))
        origin = f" ({self.origins[number]})" if self.origins else ""
        return f"row {row}, document {document}{origin}"

    def kinds_of(self, number: int) -> Kinds | None:
        """The reasons of a document's tokens."""
        return None if self.kinds is None else self.kinds[self.docs.offsets[number] : self.docs.offsets[number + 1]]


def diff(left_path: Path, right_path: Path) -> DiffReport:
    """Align the documents of two sets by content, and name the first difference of each pair.

    Holds ids and masks of both sets in memory (six bytes a token).

    Raises:
        UsageError, SourceError: as `read_prepared`, where a side is no shard set.
        ShardError: as `open_shard_set`; `no-tokenizer`.
    """
    left, right = _side(left_path), _side(right_path)
    tokenizer = _tokenizer(left.path) or _tokenizer(right.path)
    found = align(left.docs, right.docs)
    only = (Counter[str](), Counter[str]())
    for pair in found.masks_differ:
        _count_masks(left, right, pair, only)
    rules: Counter[Rule] = Counter()
    shown: list[Difference] = []
    for pair, rule, position in _differences(left, right, found, tokenizer):
        rules[rule] += 1
        if rules[rule] <= _SHOWN_A_RULE and len(shown) < _SHOWN:
            shown.append(_shown(left, right, pair, (rule, position, tokenizer)))
    parted = [*found.masks_differ, *found.ids_differ, *found.only_left, *found.only_right]
    return DiffReport(
        same=not parted,
        left=_count(left),
        right=_count(right),
        num_identical=len(found.identical),
        num_masks_differ=len(found.masks_differ),
        num_ids_differ=len(found.ids_differ),
        num_only_left=len(found.only_left),
        num_only_right=len(found.only_right),
        trained_only_left=dict(only[0].most_common()),
        trained_only_right=dict(only[1].most_common()),
        rules=[RuleCount(rule=r.name, trained_by=r.trained_by, num_documents=n) for r, n in rules.most_common()],
        differences=shown,
        only_left=[left.place(number) for number in found.only_left[:_SHOWN]],
        only_right=[right.place(number) for number in found.only_right[:_SHOWN]],
    )


def _side(path: Path) -> Side:
    if (path / MANIFEST_NAME).is_file():
        return _shard_side(open_shard_set(path))
    parts = list(read_prepared(path))
    return Side(
        path=path,
        docs=TokenDocuments(
            ids=np.concatenate([np.zeros(0, np.int32), *(part.ids for part in parts)]),
            trained=np.concatenate([np.zeros(0, np.bool_), *(part.trained for part in parts)]),
            offsets=_offsets([part.doc_lengths for part in parts]),
        ),
        rows=np.concatenate([np.zeros(0, np.int64), *(part.doc_rows for part in parts)]),
    )


def _shard_side(shards: ShardSet) -> Side:
    facts = audit_facts(shards)
    names = [source.path for source in shards.manifest.sources]
    ids, trained, kinds, lengths, rows = (
        [np.zeros(0, np.int32)],
        [np.zeros(0, np.bool_)],
        [np.zeros(0, np.int8)],
        [],
        [],
    )
    origins: list[str] = []
    first = 0
    for batch in shards.iter_batches():
        own, numbers, _ = readable_rows(batch, facts)
        flat = {name: own[name].flatten().to_numpy() for name in _COLUMNS}
        sizes = np.diff(own["input_ids"].offsets.to_numpy()).astype(np.int64)
        starts = flat["span_starts"] + np.repeat(
            np.cumsum(sizes) - sizes, np.diff(own["span_starts"].offsets.to_numpy())
        )
        ids.append(flat["input_ids"])
        trained.append(flat["assistant_masks"] != 0)
        kinds.append(np.repeat(flat["span_kinds"], np.diff(starts, append=sizes.sum())))
        lengths.append(flat["seq_lengths"])
        rows.append(first + np.repeat(numbers, np.diff(own["seq_lengths"].offsets.to_numpy())))
        origins += [f"{names[f]}:{n}" for f, n in zip(flat["doc_files"], flat["doc_lines"], strict=True)]
        first += batch.num_rows
    docs = TokenDocuments(np.concatenate(ids), np.concatenate(trained), _offsets(lengths))
    return Side(shards.directory, docs, np.concatenate([np.zeros(0, np.int64), *rows]), np.concatenate(kinds), origins)


def _offsets(lengths: Sequence[npt.NDArray[np.integer]]) -> npt.NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(np.concatenate([np.zeros(0, np.int64), *lengths]))]).astype(np.int64)


def _tokenizer(path: Path) -> Tokenizer | None:
    file = path / "model" / "tokenizer.json"
    return Tokenizer.from_file(str(file)) if (path / MANIFEST_NAME).is_file() and file.is_file() else None


def _count(side: Side) -> SideCount:
    kind: Literal["shards", "prepared"] = "prepared" if side.kinds is None else "shards"
    tokens, trained = len(side.docs.ids), int(side.docs.trained.sum())
    return SideCount(
        path=str(side.path), kind=kind, num_documents=len(side.docs), num_tokens=tokens, num_trained=trained
    )


def _kinds(left: Side, right: Side, pair: tuple[int, int]) -> tuple[Kinds | None, Kinds | None]:
    return left.kinds_of(pair[0]), right.kinds_of(pair[1])


def _count_masks(left: Side, right: Side, pair: tuple[int, int], only: tuple[Counter[str], Counter[str]]) -> None:
    """Tokens of a pair of equal ids that one side trains alone, by reason."""
    one, other = left.docs.trained_of(pair[0]), right.docs.trained_of(pair[1])
    left_kinds, right_kinds = _kinds(left, right, pair)
    kinds = left_kinds if left_kinds is not None else right_kinds
    for counter, alone in zip(only, (one & ~other, other & ~one), strict=True):
        if kinds is None:
            counter.update({"unknown": int(alone.sum())} if alone.any() else {})
            continue
        numbers, counts = np.unique(kinds[alone], return_counts=True)
        counter.update({SpanKind(int(n)).name.lower(): int(c) for n, c in zip(numbers, counts, strict=True)})


def _differences(
    left: Side, right: Side, found: Alignment, tokenizer: Tokenizer | None
) -> Iterator[tuple[tuple[int, int], Rule, int]]:
    """Each pair that differs, its rule, and the first position."""
    for pair in found.masks_differ:
        one, other = left.docs.trained_of(pair[0]), right.docs.trained_of(pair[1])
        position = first_difference(one, other)
        yield pair, mask_rule(_kinds(left, right, pair), position, trained_left=bool(one[position])), position
    for pair in found.ids_differ:
        ids = left.docs.ids_of(pair[0]), right.docs.ids_of(pair[1])
        yield pair, id_rule(ids, _kinds(left, right, pair), tokenizer), first_difference(*ids)


def _shown(left: Side, right: Side, pair: tuple[int, int], what: tuple[Rule, int, Tokenizer | None]) -> Difference:
    rule, position, tokenizer = what
    kinds = next((own for own in _kinds(left, right, pair) if own is not None and position < len(own)), None)
    before = left.docs.ids_of(pair[0])[max(0, position - _SHOWN_TOKENS) : position]
    return Difference(
        rule=rule.name,
        trained_by=rule.trained_by,
        left=left.place(pair[0]),
        right=right.place(pair[1]),
        position=position,
        reason="" if kinds is None else SpanKind(int(kinds[position])).name.lower(),
        before=_text(before, np.zeros(len(before), np.bool_), tokenizer),
        left_text=_from(left, pair[0], position, tokenizer),
        right_text=_from(right, pair[1], position, tokenizer),
    )


def _from(side: Side, number: int, position: int, tokenizer: Tokenizer | None) -> str:
    part = slice(position, position + _SHOWN_TOKENS)
    return _text(side.docs.ids_of(number)[part], side.docs.trained_of(number)[part], tokenizer)


def _text(ids: npt.NDArray[np.int32], trained: npt.NDArray[np.bool_], tokenizer: Tokenizer | None) -> str:
    """Tokens as text, or as numbers where neither side has a tokenizer; trained ones between ⟦ and ⟧."""
    borders = np.flatnonzero(np.diff(trained)) + 1
    parts = zip(np.split(ids, borders), np.split(trained, borders), strict=True)
    return "".join(f"⟦{_decoded(i, tokenizer)}⟧" if t.any() else _decoded(i, tokenizer) for i, t in parts)


def _decoded(ids: npt.NDArray[np.int32], tokenizer: Tokenizer | None) -> str:
    if tokenizer is None:
        return " ".join(map(str, ids.tolist()))
    return str(tokenizer.decode([i for i in ids.tolist() if i >= 0], skip_special_tokens=False))

"""Compare two prepared sets document by document: what the same chats became, here and there, and by which rule.

from sftprep.prepare.diff import diff

report = diff(Path("packed"), Path("other/prepared"))
report.rules
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from sftprep.data import SpanKind
from sftprep.prepare.diff_rules import Kinds, Rule, id_rule, mask_rule
from sftprep.prepare.diff_sides import Copies, Side, read_side, temporary_folder
from sftprep.prepare.set_tokenizer import set_tokenizer
from sftprep.reports.diff_json import Difference, DiffReport, RuleCount, SideCount
from sftprep.shards.schema import MANIFEST_NAME
from sftprep.stages.align import Alignment, align, first_difference

_SHOWN: Final = 10
_SHOWN_A_RULE: Final = 2
_SHOWN_TOKENS: Final = 12

Pair = Sequence[int]
"""Numbers of a document on the left and of its partner on the right."""


def diff(left_path: Path, right_path: Path, *, copies: Copies | None = None) -> DiffReport:
    """Align the documents of two sets by content, and name the first difference of each pair.

    The tokens of both lie in files of the temporary directory meanwhile (six bytes a token); what is in memory grows
    with the documents. Shards of a URL are copied as `copies` says, a dataset at a URL into the temporary directory.

    Raises:
        UsageError, SourceError: as `read_prepared`, where a side is no shard set.
        ShardError: as `open_shard_set`.
        OutputError: `disk-full`, `output-not-writable`, of the temporary directory.
    """
    with temporary_folder() as place:
        folders = place / "left", place / "right"
        for folder in folders:
            folder.mkdir()
        sides = zip((left_path, right_path), folders, strict=True)
        return _report(*(read_side(path, folder, copies or Copies()) for path, folder in sides))


def _report(left: Side, right: Side) -> DiffReport:
    tokenizer = _tokenizer(left) or _tokenizer(right)
    found = align(left.docs, right.docs)
    only = (Counter[str](), Counter[str]())
    for pair in found.masks_differ.tolist():
        _count_masks(left, right, pair, only)
    rules: Counter[Rule] = Counter()
    shown: list[Difference] = []
    for pair, rule, position in _differences(left, right, found, tokenizer):
        rules[rule] += 1
        if rules[rule] <= _SHOWN_A_RULE and len(shown) < _SHOWN:
            shown.append(_shown(left, right, pair, (rule, position, tokenizer)))
    parted = (found.masks_differ, found.ids_differ, found.only_left, found.only_right)
    return DiffReport(
        same=not any(len(part) for part in parted),
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
        only_left=[left.place(number) for number in found.only_left[:_SHOWN].tolist()],
        only_right=[right.place(number) for number in found.only_right[:_SHOWN].tolist()],
    )


def _tokenizer(side: Side) -> Tokenizer | None:
    has_one = (side.directory / MANIFEST_NAME).is_file() and (side.directory / "model" / "tokenizer.json").is_file()
    return set_tokenizer(side.directory) if has_one else None


def _count(side: Side) -> SideCount:
    kind: Literal["shards", "prepared"] = "prepared" if side.kinds is None else "shards"
    tokens, trained = len(side.docs.ids), int(side.docs.trained.sum())
    return SideCount(
        path=str(side.path), kind=kind, num_documents=len(side.docs), num_tokens=tokens, num_trained=trained
    )


def _kinds(left: Side, right: Side, pair: Pair) -> tuple[Kinds | None, Kinds | None]:
    return left.kinds_of(pair[0]), right.kinds_of(pair[1])


def _count_masks(left: Side, right: Side, pair: Pair, only: tuple[Counter[str], Counter[str]]) -> None:
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
) -> Iterator[tuple[Pair, Rule, int]]:
    """Each pair that differs, its rule, and the first position."""
    for pair in found.masks_differ.tolist():
        trained = left.docs.trained_of(pair[0]), right.docs.trained_of(pair[1])
        yield pair, mask_rule(_kinds(left, right, pair), trained), first_difference(*trained)
    for pair in found.ids_differ.tolist():
        ids = left.docs.ids_of(pair[0]), right.docs.ids_of(pair[1])
        yield pair, id_rule(ids, _kinds(left, right, pair), tokenizer), first_difference(*ids)


def _shown(left: Side, right: Side, pair: Pair, what: tuple[Rule, int, Tokenizer | None]) -> Difference:
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

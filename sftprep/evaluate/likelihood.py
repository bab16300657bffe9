"""Held-out loss from shards that were packed: summed over trained tokens, so that no batch and no pack weighs more."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from sftprep.data import SpanKind
from sftprep.engines.reference import ReferenceEngine
from sftprep.errors import ShardError
from sftprep.evaluate.local import LocalModel
from sftprep.evaluate.origins import Origins
from sftprep.shards.read import ShardSet
from sftprep.train.model import check_same_files


@dataclass(frozen=True, slots=True)
class HeldOutDocument:
    """One document: `ids` int64 `[T]`, `kinds` int8 `[T]` (span kinds), `trained` bool `[T]`, not shifted."""

    source: int
    line: int
    ids: npt.NDArray[np.int64]
    kinds: npt.NDArray[np.int8]
    trained: npt.NDArray[np.bool_]


@dataclass(slots=True)
class LossSum:
    """Nats, tokens and UTF-8 bytes of trained text; stop tokens have no bytes."""

    nats: float = 0.0
    num_tokens: int = 0
    num_bytes: int = 0

    def add(self, other: LossSum) -> None:
        """Sum them up."""
        self.nats += other.nats
        self.num_tokens += other.num_tokens
        self.num_bytes += other.num_bytes

    @classmethod
    def of(cls, losses: Iterable[LossSum]) -> LossSum:
        """The sum of several."""
        total = cls()
        for loss in losses:
            total.add(loss)
        return total


@dataclass(frozen=True, slots=True)
class DocumentLoss:
    """A document's loss by span kind, and the categories that the whole document is in: `source:…`, `origin:…`."""

    by_kind: Mapping[str, LossSum]
    places: tuple[str, ...]

    @property
    def total(self) -> LossSum:
        """Of all kinds."""
        return LossSum.of(self.by_kind.values())

    def category(self, name: str) -> LossSum:
        """What of the document is in a category; nothing where none is."""
        return self.total if name in self.places else self.by_kind.get(name, LossSum())


@dataclass(frozen=True, slots=True)
class HeldOutLoss:
    """The loss of every document, in the set's order; `unread` are sources whose rows' origins nobody can tell."""

    documents: Sequence[DocumentLoss]
    unread: Sequence[str] = ()

    @property
    def total(self) -> LossSum:
        """Of all documents."""
        return LossSum.of(document.total for document in self.documents)

    @property
    def categories(self) -> dict[str, LossSum]:
        """The sums by category, in order of name."""
        names = sorted({name for document in self.documents for name in (*document.by_kind, *document.places)})
        return {name: LossSum.of(document.category(name) for document in self.documents) for name in names}


def held_out_documents(shards: ShardSet) -> Iterator[HeldOutDocument]:
    """The documents of all rows that have a trained token."""
    for batch in shards.iter_batches():
        for row in batch.to_pylist():
            yield from _documents(row)


def _documents(row: dict[str, Any]) -> Iterator[HeldOutDocument]:
    ids = np.asarray(row["input_ids"], np.int64)
    trained = np.asarray(row["assistant_masks"], bool)
    starts = [*row["span_starts"], len(ids)]
    if starts[0] != 0 or sum(row["seq_lengths"]) != len(ids) or len(trained) != len(ids):
        raise ShardError("the row's columns differ in length", code="damaged-row", hint="run sftprep audit on the set")
    kinds = np.repeat(np.asarray(row["span_kinds"], np.int8), np.diff(starts))
    borders = np.concatenate([[0], np.cumsum(row["seq_lengths"])]).tolist()
    places = zip(row["doc_files"], row["doc_lines"], pairwise(borders), strict=True)
    for source, line, (start, stop) in places:
        if trained[start:stop].any():
            yield HeldOutDocument(source, line, ids[start:stop], kinds[start:stop], trained[start:stop])


def held_out_loss(
    model: LocalModel, shards: ShardSet, *, batch_size: int, origins: Origins | None = None
) -> HeldOutLoss:
    """The loss of the model on a packed set; each document is read by itself, whatever pack it was in.

    Raises:
        ShardError: `tokenizer-differs`, `template-differs`, `no-samples`, `damaged-row`.
    """
    check_same_files(
        model.files,
        shards.manifest,
        place=str(shards.place),
        hint="pack the held-out rows with the model that you evaluate",
    )
    documents = list(held_out_documents(shards))
    if not documents:
        raise ShardError("the set has no trained token", code="no-samples", place=str(shards.place))
    names, said = [source.name for source in shards.manifest.sources], origins or Origins()
    losses: dict[int, DocumentLoss] = {}
    order = sorted(range(len(documents)), key=lambda i: len(documents[i].ids))
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        for number, nll in zip(batch, _token_losses(model, [documents[i] for i in batch]), strict=True):
            document = documents[number]
            origin = said.by_row.get((document.source, document.line))
            losses[number] = DocumentLoss(
                {f"kind:{SpanKind(kind).name.lower()}": loss for kind, loss in _by_kind(document, nll, model.engine)},
                (f"source:{names[document.source]}", *([] if origin is None else [f"origin:{origin}"])),
            )
    return HeldOutLoss([losses[number] for number in range(len(documents))], said.unread)


@torch.inference_mode()
def _token_losses(model: LocalModel, documents: Sequence[HeldOutDocument]) -> list[npt.NDArray[np.float64]]:
    """Nats of each trained token of each document; padding is on the right, where causal attention cannot see it."""
    width = max(len(document.ids) for document in documents)
    ids = torch.full((len(documents), width), model.files.pad_id, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for line, document in enumerate(documents):
        ids[line, : len(document.ids)] = torch.from_numpy(document.ids)
        mask[line, : len(document.ids)] = 1
    device = model.network.device
    logits = model.network(ids.to(device), attention_mask=mask.to(device), use_cache=False).logits
    found = []
    for line, document in enumerate(documents):
        targets = np.flatnonzero(document.trained)
        rows = logits[line, torch.from_numpy(targets - 1).to(device)].double()
        picked = rows.gather(1, torch.from_numpy(document.ids[targets]).to(device)[:, None]).squeeze(1)
        found.append((rows.logsumexp(dim=-1) - picked).cpu().numpy())
    return found


def _by_kind(
    document: HeldOutDocument, nll: npt.NDArray[np.float64], engine: ReferenceEngine
) -> Iterator[tuple[int, LossSum]]:
    targets = np.flatnonzero(document.trained)
    kinds = document.kinds[targets]
    for kind in np.unique(kinds):
        own = targets[kinds == kind]
        runs = np.split(document.ids[own], np.flatnonzero(np.diff(own) != 1) + 1)
        is_text = kind != SpanKind.STOP
        num_bytes = sum(len(engine.decode(run.tolist()).encode("utf-8", "replace")) for run in runs) if is_text else 0
        yield int(kind), LossSum(float(nll[kinds == kind].sum()), len(own), num_bytes)

"""The manifest of what was packed: every number from the ledger, the shards' own from the writer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from sftprep.config.pack import PackConfig
from sftprep.config.places import shown
from sftprep.data import PackPlan
from sftprep.engines.model import ModelFiles
from sftprep.prepare.fingerprint import NOT_IN_MANIFEST, versions
from sftprep.prepare.inputs import InputFile
from sftprep.prepare.ledger import Ledger, SourceAccount
from sftprep.shards.manifest import (
    Counts,
    LeftOut,
    Lengths,
    Manifest,
    ModelRecord,
    OverLengthRecord,
    ShardRecord,
    SourceRecord,
    Waste,
)
from sftprep.stages.lengths import quantiles, waste


@dataclass(frozen=True, slots=True)
class Packed:
    """What a manifest tells, before the shards are written."""

    fingerprint: str
    config: PackConfig
    model: ModelFiles
    files: tuple[InputFile, ...]
    ledger: Ledger
    plan: PackPlan
    """Over documents as the ledger numbers them; a document taken twice is there twice."""
    max_length: int
    num_packs_if_packed: int
    kwargs: Sequence[str]
    """The template's keyword arguments that the documents name, as JSON."""

    @property
    def num_tokens(self) -> int:
        """Tokens of all rows."""
        return int(self.ledger.lengths[self.plan.order].sum(dtype="int64"))

    @property
    def waste(self) -> Waste:
        """What padding and packing would each waste, whichever was done."""
        lengths = self.ledger.lengths[self.plan.order]
        return Waste(**asdict(waste(lengths, max_length=self.max_length, num_packs=self.num_packs_if_packed)))


def with_shards(manifest: Manifest, shards: Sequence[ShardRecord]) -> Manifest:
    """The manifest with its shards, and with what they add up to."""
    counts = manifest.counts.model_copy(update={"weight_sum": sum(shard.weight_sum for shard in shards)})
    return manifest.model_copy(update={"shards": list(shards), "counts": counts})


def build_manifest(packed: Packed) -> Manifest:
    """All that is known before a shard is written: see `with_shards`."""
    config, ledger, order = packed.config, packed.ledger, packed.plan.order
    accounts = zip(packed.files, ledger.sources, strict=True)
    return Manifest(
        fingerprint=packed.fingerprint,
        versions=versions(),
        model=_model_record(packed.model),
        config=config.model_dump(mode="json", exclude=set(NOT_IN_MANIFEST)),
        packing=config.packing,
        max_length=packed.max_length,
        has_weights=ledger.has_weights,
        mask="assistant" if config.mask == "contract" else config.mask,
        template_kwargs=[json.loads(kwargs) for kwargs in packed.kwargs],
        sources=[_source_record(file, account) for file, account in accounts],
        shards=[],
        counts=_counts(packed),
        lengths=Lengths(**asdict(quantiles(ledger.lengths[order]))),
        trained_lengths=Lengths(**asdict(quantiles(ledger.trained_lengths[order]))),
        waste=packed.waste,
        left_out=LeftOut(
            num_rows=ledger.left_out.num_rows,
            by_code=dict(sorted(ledger.left_out.by_code.items())),
            max_drop=config.max_drop,
        ),
        over_length=OverLengthRecord(policy=config.over_length.value, **asdict(ledger.over_length)),
    )


def _model_record(model: ModelFiles) -> ModelRecord:
    return ModelRecord(
        name=model.name,
        tokenizer_sha256=model.tokenizer_sha256,
        template_sha256=model.template_sha256,
        template=model.template,
        tool_template=model.tool_template,
        stop_ids=list(model.stop_ids),
        stop_tokens=list(model.stop_tokens),
        vocab_size=model.vocab_size,
        pad_id=model.pad_id,
    )


def _source_record(file: InputFile, account: SourceAccount) -> SourceRecord:
    return SourceRecord(
        name=file.spec.name,
        path=shown(file.spec.path),
        sha256=file.sha256,
        identity=file.identity,
        num_bytes=file.num_bytes,
        num_rows=account.num_rows,
        epochs=file.spec.epochs,
        num_taken=account.num_taken,
        num_documents=account.num_documents,
        num_left_out=account.num_left_out,
    )


def _counts(packed: Packed) -> Counts:
    ledger, order = packed.ledger, packed.plan.order
    return Counts(
        num_conversations=ledger.num_conversations,
        num_documents=len(order),
        num_packs=packed.plan.num_packs,
        num_tokens=packed.num_tokens,
        num_trained=int(ledger.trained_lengths[order].sum(dtype="int64")),
        num_turns=sum(ledger.classes.values()),
        weight_sum=0.0,
        tokens_by_kind=ledger.tokens_by_kind,
        documents_by_class=dict(sorted(ledger.classes.items())),
        repeated_tokens=ledger.num_repeated_tokens,
        remarks=dict(sorted(ledger.remarks.items())),
    )

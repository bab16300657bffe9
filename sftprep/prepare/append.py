"""A shard set that more sources are added to: what must be the same, and the manifest of old and new together."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from sftprep.config.pack import PackConfig
from sftprep.engines.load import load_model
from sftprep.engines.model import ModelFiles
from sftprep.errors import DataError, OutputError, UsageError
from sftprep.prepare.fingerprint import NOT_IN_BYTES
from sftprep.prepare.inputs import InputFile
from sftprep.prepare.left_out import LEFT_OUT_NAME
from sftprep.prepare.pack_report import REPORT_NAME
from sftprep.prepare.unchanged import parts_of
from sftprep.reports.mask_json import AuditReport
from sftprep.shards.manifest import Counts, LeftOut, Lengths, Manifest, OverLengthRecord, PartRecord, Waste
from sftprep.shards.read import ShardSet, open_shard_set

_REPORTS: Final = "reports/part-{}.json"

_NOT_OF_BYTES: Final = frozenset({"name", "files", "tokenizer_json", "opened"})
"""Fields of a model that decide no byte: where it was, how its files are written, what is made of them.

`tokenizer_sha256` decides.
"""


@dataclass(frozen=True, slots=True)
class Base:
    """The set at the output that is added to."""

    shards: ShardSet

    @classmethod
    def open(cls, config: PackConfig) -> Base:
        """ShardError where there is no whole set."""
        shards = open_shard_set(config.out)
        shards.verify(checksums=False)
        return cls(shards)

    @property
    def kwargs(self) -> list[str]:
        """The template's keyword arguments that its documents index, as JSON."""
        return [json.dumps(kwargs, sort_keys=True) for kwargs in self.shards.manifest.template_kwargs]

    def renumbered(self, documents: pa.Table) -> pa.Table:
        """New documents, their sources numbered behind those of the set."""
        at = documents.schema.get_field_index("doc_file")
        behind = pa.scalar(len(self.shards.manifest.sources), pa.int32())
        return documents.set_column(at, documents.schema.field(at), pc.add(documents["doc_file"], behind))

    def files(self) -> Iterator[tuple[str, bytes]]:
        """Its reports, by their names in the new set: each part keeps the one that it was published with."""
        there, number = self.shards.directory, len(parts_of(self.shards.manifest)) - 1
        for path in sorted(there.glob(_REPORTS.format("*"))):
            yield str(path.relative_to(there)), path.read_bytes()
        yield _REPORTS.format(f"{number:05}"), (there / REPORT_NAME).read_bytes()

    def left_out(self) -> Iterator[bytes]:
        """The lines of its `left_out.jsonl`."""
        with (self.shards.directory / LEFT_OUT_NAME).open("rb") as lines:
            yield from lines

    def refuse_other(self, files: Sequence[InputFile], *, model: ModelFiles, config: PackConfig) -> None:
        """OutputError `append-differs` where the set was made otherwise, `source-repeated` where it has a file."""
        self._refuse_differences(_other_options(self.shards.manifest, config), "option")
        theirs = load_model(str(self.shards.directory / "model"))
        named = [field.name for field in fields(ModelFiles) if field.name not in _NOT_OF_BYTES]
        self._refuse_differences(
            [name for name in named if getattr(theirs, name) != getattr(model, name)], "part of the model"
        )
        known = {_bytes_of(source): source.path for source in self.shards.manifest.sources}
        for file in files:
            if _bytes_of(file) in known:
                raise UsageError(
                    f"the set holds these bytes already, from {known[_bytes_of(file)]}",
                    code="source-repeated",
                    place=str(file.spec.path),
                    hint="append only files that are new; another weight of a source needs a set of its own",
                )

    def _refuse_differences(self, names: Sequence[str], kind: str) -> None:
        if names:
            raise OutputError(
                f"the set was packed with another {kind}: {', '.join(names)}",
                code="append-differs",
                place=str(self.shards.directory),
                hint="append with the options and the model that the manifest names, or pack into another directory",
            )

    def refuse_weights(self, has_weights: bool) -> None:
        """DataError `append-weights` where new rows have weights and the old shards have no column for them."""
        if has_weights and not self.shards.manifest.has_weights:
            raise DataError(
                "the rows have weights, and the shards that are there have no column for them: nothing was published",
                code="append-weights",
                place=str(self.shards.directory),
                hint="pack all files together, or these into another directory",
            )

    def manifest_with(self, part: Manifest) -> Manifest:
        """Of old and new together; `part` is of the new alone. Lengths are still the part's: see `with_lengths`."""
        old = self.shards.manifest
        new = PartRecord(
            fingerprint=part.fingerprint,
            versions=part.versions,
            num_sources=len(part.sources),
            num_shards=len(part.shards),
        )
        parts = [*parts_of(old), new]
        return part.model_copy(
            update={
                "fingerprint": _fingerprint_of(parts),
                "parts": parts,
                "config": old.config,
                "has_weights": old.has_weights,
                "max_length": max(old.max_length, part.max_length),
                "sources": [*old.sources, *part.sources],
                "shards": [*old.shards, *part.shards],
                "counts": _counts(old.counts, part.counts),
                "waste": _waste(old, part),
                "left_out": _left_out(old.left_out, part.left_out),
                "over_length": _over_length(old.over_length, part.over_length),
            }
        )


def with_lengths(manifest: Manifest, audit: AuditReport) -> Manifest:
    """The quantiles of all documents, as the audit has counted them."""
    lengths, trained = (Lengths(**asdict(found)) for found in (audit.lengths, audit.trained_lengths))
    return manifest.model_copy(update={"lengths": lengths, "trained_lengths": trained})


def _fingerprint_of(parts: Sequence[PartRecord]) -> str:
    return hashlib.sha256(json.dumps([part.fingerprint for part in parts]).encode("ascii")).hexdigest()


def _bytes_of(source: object) -> str:
    """What names a file's bytes: its sha256, or an object store's own name for them."""
    return str(getattr(source, "sha256", "") or getattr(source, "identity", ""))


def _other_options(old: Manifest, config: PackConfig) -> list[str]:
    new = config.model_dump(mode="json", exclude=set(NOT_IN_BYTES))
    return [f"--{name.replace('_', '-')}" for name, value in new.items() if old.config.get(name, value) != value]


def _counts(old: Counts, new: Counts) -> Counts:
    first, second = old.model_dump(), new.model_dump()
    return Counts(**{name: _summed(first[name], second[name]) for name in first})


def _summed(first: Any, second: Any) -> Any:
    return dict(Counter(first) + Counter(second)) if isinstance(first, dict) else first + second


def _waste(old: Manifest, new: Manifest) -> Waste:
    """Of all documents: positions add up, whichever share of them is padding."""
    longest = max(old.lengths.max, new.lengths.max)
    max_length = max(old.max_length, new.max_length)
    num_documents = old.counts.num_documents + new.counts.num_documents
    num_tokens = old.counts.num_tokens + new.counts.num_tokens
    positions = sum(part.counts.num_tokens / (1 - part.waste.packing) for part in (old, new))
    return Waste(
        padding_to_longest=1 - num_tokens / (num_documents * longest),
        padding_to_max_length=1 - num_tokens / (num_documents * max_length),
        packing=1 - num_tokens / positions,
    )


def _left_out(old: LeftOut, new: LeftOut) -> LeftOut:
    by_code = Counter(old.by_code) + Counter(new.by_code)
    return LeftOut(num_rows=old.num_rows + new.num_rows, by_code=dict(sorted(by_code.items())), max_drop=new.max_drop)


def _over_length(old: OverLengthRecord | None, new: OverLengthRecord | None) -> OverLengthRecord | None:
    if old is None or new is None:
        return old or new
    numbers = {name for name in OverLengthRecord.model_fields if name != "policy"}
    return OverLengthRecord(policy=new.policy, **{name: getattr(old, name) + getattr(new, name) for name in numbers})

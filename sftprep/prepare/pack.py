"""`sftprep pack` as one call: chat files and a model's own files in, a proven shard set out.

from sftprep.config.pack import PackConfig
from sftprep.prepare.pack import pack

result = pack(PackConfig(files=("chats.jsonl",), model="path/to/model", out="shards", max_length=4096))
result.shards.manifest.counts.num_trained

read ─▶ compile (render, encode) ─▶ spool ─▶ plan on lengths ─▶ gather ─▶ shards ─▶ audit ─▶ publish

Up to the spool a run that is killed is gone on with by the same command; what follows is done again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import pyarrow as pa

from sftprep.config.pack import OverLength, PackConfig
from sftprep.data import PackPlan
from sftprep.engines.load import load_model
from sftprep.engines.model import ModelFiles
from sftprep.errors import DataError, ShardError
from sftprep.prepare.audit import summarise
from sftprep.prepare.chunk import OVER_LENGTH, Chunk
from sftprep.prepare.compile import compiler
from sftprep.prepare.fingerprint import fingerprint
from sftprep.prepare.inputs import InputChunk, InputFile, input_chunks, input_files
from sftprep.prepare.ledger import Ledger
from sftprep.prepare.mix import planning_order, wanted_rows
from sftprep.prepare.pack_report import REPORT_NAME, PackReport, build_report
from sftprep.prepare.publish import Packed, build_manifest
from sftprep.prepare.spool import LEFT_OUT_NAME, Spool, left_out_lines
from sftprep.prepare.workers import compile_chunks
from sftprep.reports.mask_json import AuditReport
from sftprep.shards.claim import OutputClaim
from sftprep.shards.gather import distinct_kwargs, gather
from sftprep.shards.place import check_output
from sftprep.shards.read import ShardSet, open_shard_set
from sftprep.shards.schema import MANIFEST_NAME
from sftprep.shards.write import ShardWriter
from sftprep.sources.compressed import OnBytes
from sftprep.stages.pack import plan, plan_single, spread

OnLeftOut = Callable[[str], None]
"""Told each finding of a left-out row, in words, where the run is refused because of them."""


@dataclass(frozen=True, slots=True)
class PackResult:
    """A published shard set and its report; `unchanged` where it was there already and nothing was done."""

    shards: ShardSet
    report: PackReport
    unchanged: bool


def pack(config: PackConfig, *, on_bytes: OnBytes | None = None, on_left_out: OnLeftOut | None = None) -> PackResult:
    """Pack the files of `config` for its model and publish the set at `config.out`, whole or not at all.

    Raises:
        UsageError: a file, the model or the output cannot be used.
        DataError: `rows-left-out` or `over-length` where rows cannot be packed and may not be left out,
            `nothing-to-pack`, `source-changed`, `template-syntax`, `template-limit`, `audit-failed`.
    """
    model = load_model(config.model)
    compiler(model, config)  # A template that does not compile is found before anything is read.
    files = input_files(config)
    key = fingerprint(files, model=model, config=config)
    check_output(config.out, fingerprint=key, overwrite=config.overwrite)
    there = _whole_set(config, key)
    if there is not None:
        return _unchanged(there, config, on_left_out)
    run = _Run(config, model, files, key)
    with OutputClaim(config.out) as claim:
        check_output(config.out, fingerprint=key, overwrite=config.overwrite)
        with Spool(config.out, key) as spool:
            claim.clear(keep=spool.directory)
            ledger = _compile(run, spool, on_bytes)
            refusal = _refusal(ledger, config)
            if refusal is not None:
                _tell(spool.left_out(), on_left_out)
                raise refusal
            return _write(_plan(run, ledger, spool.documents()), spool)


@dataclass(frozen=True, slots=True)
class _Run:
    config: PackConfig
    model: ModelFiles
    files: tuple[InputFile, ...]
    fingerprint: str

    def compiled(self, unread: Iterator[InputChunk]) -> Iterator[Chunk]:
        """Each chunk, read and compiled, of the bytes that the fingerprint names: only those may outlive the run."""
        for chunk in compile_chunks(unread, model=self.model, config=self.config):
            self.files[chunk.read.source].refuse_changed()
            yield chunk


def _compile(run: _Run, spool: Spool, on_bytes: OnBytes | None) -> Ledger:
    """Compile every chunk that is not in the spool yet, and account for all of them."""
    ledger = Ledger(len(run.files))
    unread = input_chunks(run.files, run.config, on_bytes=on_bytes)
    for chunk in spool.completed(unread, run.compiled):
        ledger.add(chunk)
    for file in run.files:
        file.refuse_changed()
    return ledger


def _whole_set(config: PackConfig, key: str) -> ShardSet | None:
    """The set of this fingerprint at the output, if it is there; a damaged one is an error unless it is replaced."""
    if not (config.out / MANIFEST_NAME).is_file():
        return None
    try:
        there = open_shard_set(config.out)
        if there.manifest.fingerprint != key:
            return None
        there.verify(checksums=False)
    except ShardError:
        if config.overwrite:
            return None
        raise
    return there


def _unchanged(there: ShardSet, config: PackConfig, on_left_out: OnLeftOut | None) -> PackResult:
    """Nothing to do, unless the set leaves out more rows than this run allows: that decides no byte."""
    num_rows = sum(min(source.num_rows, source.num_taken) for source in there.manifest.sources)
    left_out = there.manifest.left_out
    if not config.may_drop(left_out.num_rows, num_rows=num_rows):
        with (there.directory / LEFT_OUT_NAME).open("rb") as lines:
            _tell(lines, on_left_out)
        raise _too_many(left_out.num_rows, config, num_rows=num_rows, hint=_by_code(left_out.by_code, hints={}))
    report = PackReport.model_validate_json((there.directory / REPORT_NAME).read_bytes())
    return PackResult(shards=there, report=report, unchanged=True)


def _refusal(ledger: Ledger, config: PackConfig) -> DataError | None:
    """Why nothing may be published, if so."""
    account, num_rows = ledger.left_out, ledger.num_taken_rows
    hint = _by_code(account.by_code, hints=account.hints)
    if account.num_over_length and config.over_length is OverLength.REFUSE:
        return DataError(
            f"{account.num_over_length:,} of {num_rows:,} rows are longer than --max-length {config.max_length:,}, "
            f"the longest has {account.longest:,} tokens: nothing was published",
            code=OVER_LENGTH,
            hint=hint,
        )
    if not config.may_drop(account.num_rows, num_rows=num_rows):
        return _too_many(account.num_rows, config, num_rows=num_rows, hint=hint)
    if not ledger.num_conversations:
        return DataError("no row is left to pack: nothing was published", code="nothing-to-pack", hint=hint)
    return None


def _too_many(num_left_out: int, config: PackConfig, *, num_rows: int, hint: str) -> DataError:
    return DataError(
        f"{num_left_out:,} of {num_rows:,} rows cannot be packed and --max-drop allows {config.max_drop}: "
        "nothing was published",
        code="rows-left-out",
        hint=hint,
    )


def _by_code(by_code: Mapping[str, int], *, hints: Mapping[str, str]) -> str:
    """`control-token 12: what to do`, the most frequent code first."""
    ranked = sorted(by_code.items(), key=lambda item: (-item[1], item[0]))
    return "\n        ".join(f"{code} {count:,}: {hints.get(code) or 'see its rows'}" for code, count in ranked)


def _tell(left_out: Iterable[bytes], on_left_out: OnLeftOut | None) -> None:
    if on_left_out is not None:
        for line in left_out_lines(left_out):
            on_left_out(line)


def _refuse_failed(audit: AuditReport, config: PackConfig) -> None:
    """A set that breaks what a shard set promises is a fault of sftprep's own; it is never published.

    The template's own tags promise nothing of stop tokens: the audit says so, and whoever asked for them has them.
    """
    expected = {"stop-untrained"} if config.mask == "generation-tags" else set()
    findings = [finding for finding in audit.findings if finding.code not in expected]
    if not audit.passed and (findings or not expected):
        found = ", ".join(f"{finding.code} in {finding.num_rows:,} rows" for finding in findings)
        raise ShardError(f"the written shards fail their audit: {found}: nothing was published", code="audit-failed")


def _plan(run: _Run, ledger: Ledger, documents: pa.Table) -> Packed:
    """Decide the rows from lengths alone; a document that is taken n times is planned n times."""
    config = run.config
    order = planning_order(ledger.times, seed=config.seed)
    lengths = ledger.lengths[order]
    max_length = int(lengths.max()) if config.max_length is None else config.max_length
    packs = plan(lengths, capacity=max_length, seed=config.seed)
    rows = wanted_rows(
        packs.num_packs,
        num_documents=len(lengths),
        num_rows=config.num_rows,
        multiple_of=config.rows_multiple_of,
    )
    packs = spread(packs, num_rows=rows, seed=config.seed)
    planned = packs if config.packing else plan_single(lengths, seed=config.seed)
    return Packed(
        fingerprint=run.fingerprint,
        config=config,
        model=run.model,
        files=run.files,
        ledger=ledger,
        plan=PackPlan(order=order[planned.order], offsets=planned.offsets),
        max_length=max_length,
        num_packs_if_packed=packs.num_packs,
        kwargs=distinct_kwargs(documents),
    )


def _write(packed: Packed, spool: Spool) -> PackResult:
    """Write shards and all that lies beside them, look at the masks as they are on disk, then publish."""
    config, ledger = packed.config, packed.ledger
    with ShardWriter(
        config.out,
        fingerprint=packed.fingerprint,
        shard_tokens=config.shard_tokens,
        weights=ledger.has_weights,
        overwrite=config.overwrite,
    ) as writer:
        for batch in gather(spool.documents(), packed.plan, weights=ledger.has_weights):
            writer.write(batch)
            spool.release()
        manifest = build_manifest(packed, writer.finish())
        audit = summarise(ShardSet(writer.directory, manifest))
        _refuse_failed(audit, config)
        report = build_report(manifest, ledger, audit=audit)
        for name, content in packed.model.files.items():
            writer.add_file(f"model/{name}", content)
        writer.add_file(LEFT_OUT_NAME, spool.left_out())
        writer.add_file(REPORT_NAME, (report.model_dump_json(indent=2) + "\n").encode())
        writer.publish(manifest)
    return PackResult(shards=ShardSet(config.out, manifest), report=report, unchanged=False)

"""`sftprep pack` as one call: chat files and a model's own files in, a proven shard set out.

from sftprep.config.pack import PackConfig
from sftprep.prepare.pack import pack

result = pack(PackConfig(files=("chats.jsonl",), model="path/to/model", out="shards", max_length=4096))
result.shards.manifest.counts.num_trained

read ─▶ compile (render, encode) ─▶ spool ─▶ plan on lengths ─▶ gather ─▶ shards ─▶ audit ─▶ publish

Up to the spool a run that is killed is gone on with by the same command; what follows is done again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path

from sftprep.config.pack import PackConfig
from sftprep.config.places import is_remote
from sftprep.data import PackPlan
from sftprep.engines.load import load_model
from sftprep.engines.model import ModelFiles
from sftprep.errors import EngineDiffersError, SourceError
from sftprep.prepare.append import Base, with_lengths
from sftprep.prepare.audit_report import report as audit_report
from sftprep.prepare.audit_tally import Tally, facts_of
from sftprep.prepare.child_process import will_be_asked
from sftprep.prepare.chunk_record import Finished
from sftprep.prepare.compile import compiler
from sftprep.prepare.fingerprint import fingerprint
from sftprep.prepare.inputs import InputChunk, InputFile, input_chunks, input_files
from sftprep.prepare.ledger import Ledger
from sftprep.prepare.left_out import LEFT_OUT_NAME
from sftprep.prepare.mix import planning_order, wanted_rows
from sftprep.prepare.pack_report import REPORT_NAME, RUN_NAME, build_report, build_run
from sftprep.prepare.publish import Packed, build_manifest, with_shards
from sftprep.prepare.refusal import OnLeftOut, refusal, refuse_failed, tell
from sftprep.prepare.shard_work import ShardJob, ShardTask
from sftprep.prepare.spool import Spool
from sftprep.prepare.store_output import store_output
from sftprep.prepare.unchanged import PackResult, find_unchanged, remember, snapshot, unchanged, whole_set
from sftprep.prepare.workers import Crew, compile_chunks, make_shards
from sftprep.reports.publication import json_bytes
from sftprep.shards.claim import OutputClaim
from sftprep.shards.gather import shard_rows, shard_size
from sftprep.shards.manifest import Manifest
from sftprep.shards.place import check_output
from sftprep.shards.read import ShardSet
from sftprep.shards.write import OnShard, ShardWriter
from sftprep.sources.compressed import OnBytes
from sftprep.stages.pack import plan, plan_single, spread


def pack(config: PackConfig, *, on_bytes: OnBytes | None = None, on_left_out: OnLeftOut | None = None) -> PackResult:
    """Pack the files of `config` for its model and publish the set at `config.out`, whole or not at all.

    Raises:
        UsageError: a file, the model or the output cannot be used.
        DataError: `rows-left-out` or `over-length` where rows cannot be packed and may not be left out,
            `nothing-to-pack`, `source-changed`, `template-syntax`, `template-limit`, `audit-failed`.
    """
    known = find_unchanged(config, on_left_out=on_left_out)
    return pack_read(config, on_bytes=on_bytes, on_left_out=on_left_out) if known is None else known


def pack_read(
    config: PackConfig, *, on_bytes: OnBytes | None = None, on_left_out: OnLeftOut | None = None
) -> PackResult:
    """As `pack`, where it is known already that `find_unchanged` knows of no such set: the files are read."""
    before = snapshot(config)
    model = load_model(config.model, keep_open=True)
    compiler(model, config)  # A template that does not compile is found before anything is read.
    with Crew(config) as crew:
        if will_be_asked(config):
            crew.begin(model)  # beside the hash of the input
        files = input_files(config)
        key = fingerprint(files, model=model, config=config)
        run = _Run(config, model, files, key, crew)
        result = (_in_store if is_remote(config.out) else _here)(run, on_bytes, on_left_out)
    remember(config, before, fingerprint=key)
    return result


def _here(run: _Run, on_bytes: OnBytes | None, on_left_out: OnLeftOut | None) -> PackResult:
    config = run.config
    if not config.append:
        check_output(config.out, fingerprint=run.fingerprint, overwrite=config.overwrite)
    there = whole_set(config, run.fingerprint)
    return _made(run, on_bytes, on_left_out) if there is None else unchanged(there, config, on_left_out)


def _in_store(run: _Run, on_bytes: OnBytes | None, on_left_out: OnLeftOut | None) -> PackResult:
    with store_output(run.config, fingerprint=run.fingerprint) as store:
        if store.there is not None:
            return unchanged(store.there, run.config, on_left_out)
        local = run.config.model_copy(update={"out": store.directory, "overwrite": True})
        made = _here(replace(run, config=local, on_shard=store.upload), on_bytes, on_left_out)
        return replace(made, shards=store.publish(), unchanged=False)


def _made(run: _Run, on_bytes: OnBytes | None, on_left_out: OnLeftOut | None) -> PackResult:
    config = run.config
    if config.append:
        base = Base.open(config)
        base.refuse_other(run.files, model=run.model, config=config)
        run = replace(run, base=base)
    try:
        return _packed(run, on_bytes, on_left_out)
    except EngineDiffersError as error:
        # Every chunk that the fast engine encoded is gone with the spool, and is done again.
        config = config.model_copy(update={"tokenizer_engine": "reference"})
        again = replace(run, config=config, crew=Crew(config), differed=error.place)
        return _packed(again, on_bytes, on_left_out)


def _packed(run: _Run, on_bytes: OnBytes | None, on_left_out: OnLeftOut | None) -> PackResult:
    config = run.config
    with OutputClaim(config.out) as claim:
        check_output(config.out, fingerprint=run.replaces, overwrite=config.overwrite)
        # The children have ended when the spool is left, into which they write.
        with Spool(config.out, run.fingerprint) as spool, run.crew:
            claim.clear(keep=spool.directory)
            ledger = _compile(run, spool, on_bytes)
            refused = refusal(ledger, config)
            if refused is not None:
                tell(spool.left_out(), on_left_out)
                raise refused
            if run.base is not None:
                run.base.refuse_weights(ledger.has_weights)
            result = _write(_plan(run, ledger), spool, run)
            return replace(result, rendering=ledger.rendering, engine_differed=run.differed)


@dataclass(frozen=True, slots=True)
class _Run:
    config: PackConfig
    model: ModelFiles
    files: tuple[InputFile, ...]
    fingerprint: str
    crew: Crew
    base: Base | None = None
    """The set that is added to, if one is."""
    differed: str = ""
    """The row for which a fast engine gave other ids than the reference, if one did."""
    on_shard: OnShard | None = None

    @property
    def replaces(self) -> str:
        """The fingerprint of the set that may be at the output."""
        return self.fingerprint if self.base is None else self.base.shards.manifest.fingerprint

    def compiled(self, unread: Iterator[InputChunk], directory: Path) -> Iterator[Finished]:
        """Each chunk, read and compiled, of the bytes that the fingerprint names: only those may outlive the run."""
        try:
            for finished in compile_chunks(unread, model=self.model, crew=self.crew, directory=directory):
                self.files[finished.account.read.source].refuse_changed()
                yield finished
        except SourceError:
            for file in self.files:  # what cannot be read may only have changed
                file.refuse_changed()
            raise


def _compile(run: _Run, spool: Spool, on_bytes: OnBytes | None) -> Ledger:
    """Compile every chunk that is not in the spool yet, and account for all of them."""
    ledger = Ledger(len(run.files))
    shared = run.config.runner == "local" and run.crew.num_workers > 1
    unread = input_chunks(run.files, run.config, on_bytes=on_bytes, shared=shared)
    for account in spool.completed(unread, lambda rest: run.compiled(rest, spool.directory)):
        ledger.add(account)
    for file in run.files:
        file.refuse_changed()
    return ledger


def _plan(run: _Run, ledger: Ledger) -> Packed:
    """Decide the rows from lengths alone; a document that is taken n times is planned n times."""
    config = run.config
    known = () if run.base is None else run.base.kwargs
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
        kwargs=list(dict.fromkeys([*known, *ledger.kwargs])),
    )


def _write(packed: Packed, spool: Spool, run: _Run) -> PackResult:
    """Write shards and all that lies beside them, look at the masks as they are on disk, then publish."""
    config, ledger, base = packed.config, packed.ledger, run.base
    part = build_manifest(packed)
    with ShardWriter(config.out, fingerprint=run.replaces, overwrite=config.overwrite) as writer:
        writer.on_shard = run.on_shard
        if base is not None:
            writer.take_over(base.shards)
        whole = part if base is None else base.manifest_with(part)
        total = Tally.of(len(whole.sources))
        for made in make_shards(_tasks(packed, whole, writer, spool), crew=run.crew):
            total.merge(made.tally)
            if made.is_new:
                writer.add(made.record)
        part = with_shards(part, writer.records[writer.num_taken_over :])
        manifest = part if base is None else base.manifest_with(part)
        total.compare(manifest.counts)
        audit = audit_report(ShardSet(writer.directory, manifest), total)
        refuse_failed(audit, config)
        manifest = manifest if base is None else with_lengths(manifest, audit)
        report = build_report(part, ledger, audit=audit)
        for name, content in _files_beside(run):
            writer.add_file(name, content)
        writer.add_file(LEFT_OUT_NAME, chain(() if base is None else base.left_out(), spool.left_out()))
        writer.add_file(REPORT_NAME, json_bytes(report))
        writer.add_file(RUN_NAME, json_bytes(build_run(ledger.rendering, engine_differed=run.differed)))
        writer.publish(manifest)
    return PackResult(shards=ShardSet(config.out, manifest), report=report, unchanged=False)


def _tasks(packed: Packed, whole: Manifest, writer: ShardWriter, spool: Spool) -> list[ShardTask]:
    """What is to be made and what is only audited: the shards that are there already stand first."""
    job = ShardJob(
        out=packed.config.out,
        directory=writer.directory,
        documents=spool.documents(),
        kwargs=tuple(packed.kwargs),
        first_source=len(whole.sources) - len(packed.files),
        weights=whole.has_weights,
        facts=facts_of(whole),
    )
    size = packed.config.shard_tokens or shard_size(packed.num_tokens)
    parts = shard_rows(packed.plan, packed.ledger.lengths, shard_tokens=size)
    old = [ShardTask(job, number, record=record) for number, record in enumerate(writer.records)]
    return old + [ShardTask(job, number, rows=rows) for number, rows in enumerate(parts, len(old))]


def _files_beside(run: _Run) -> Iterator[tuple[str, bytes]]:
    """A new set carries its model; one that is added to has it, and keeps its reports."""
    if run.base is not None:
        yield from run.base.files()
        return
    for name, content in run.model.files.items():
        yield f"model/{name}", content

"""What is wrong between a model and the packed set that it was trained on: parity of files, and the set's own audit."""

from __future__ import annotations

import json
from pathlib import Path

from sftprep.engines.model import ModelFiles
from sftprep.prepare.audit_report import summarise
from sftprep.reports.wording import counted
from sftprep.shards.read import ShardSet

_TRAIN_REPORT = "train.json"


def parity_faults(model: ModelFiles, directory: Path, shards: ShardSet) -> list[str]:
    """Where the model's files are not those that its training rows were rendered and encoded with."""
    packed = shards.manifest.model
    faults = []
    if model.tokenizer_sha256 != packed.tokenizer_sha256:
        faults.append(f"the tokenizer is not the one that {shards.place} was packed with")
    if model.template_sha256 != packed.template_sha256:
        faults.append(f"the chat template is not the one that {shards.place} was packed with")
    if not set(packed.stop_ids) <= set(model.stop_ids):
        faults.append(f"a server of the model would not stop on all of {', '.join(packed.stop_tokens)}")
    report = directory / _TRAIN_REPORT
    if report.is_file():
        named = json.loads(report.read_text(encoding="utf-8")).get("fingerprint")
        if named != shards.manifest.fingerprint:
            faults.append(f"{report} names another packed set")
    return faults


def provenance_faults(shards: ShardSet) -> list[str]:
    """Why the set's rows are not fit to have trained a model: what its audit finds."""
    if shards.copies is None:  # what is copied is verified on the way
        shards.verify()
    found = summarise(shards)
    if found.passed:
        return []
    return [
        f"{finding.code} in {counted(finding.num_rows, 'row')} of the set"
        for finding in found.findings
        if not finding.allowed
    ]

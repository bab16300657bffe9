"""Prove a shard set: the sources read again, every prompt rendered as a server does, and compared with the shards.

The server's side shares no code with the masks: the model's plain template on the messages before the turn, with the
generation prompt, encoded in one piece. The shards' side is what the trainer reads.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sftprep.config.pack import OverLength
from sftprep.data import Conversation, Json
from sftprep.engines.model import ModelFiles
from sftprep.engines.reference import ReferenceEngine
from sftprep.errors import TemplateError
from sftprep.prepare.audit_tally import audit_facts
from sftprep.prepare.chat_templates import ChatTemplates
from sftprep.prepare.over_length import num_system, without_messages
from sftprep.prepare.recorded_sources import conversations, source_state
from sftprep.reports.parity_json import ParityCertificate, PromptDifference, SourceProof, Verdict
from sftprep.shards.manifest import SourceRecord
from sftprep.shards.read import ShardSet
from sftprep.stages.align import first_difference
from sftprep.stages.mask_audit import readable_rows
from sftprep.stages.turn_prompts import TURN, Turns, digest, trained_turns
from sftprep.templates.adapt import adapt_messages, probe_form
from sftprep.templates.merge import merge_consecutive
from sftprep.templates.template import ChatTemplate, Request

_SHOWN_DIFFERENCES: Final = 10
_SHOWN_TOKENS: Final = 12

Prompt = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Server:
    """Renders and encodes prompts as a server of the model does, for the conversations that the set was made of."""

    templates: ChatTemplates[ChatTemplate]
    engine: ReferenceEngine
    kwargs: Sequence[Mapping[str, Json]]
    """The set's distinct keyword arguments."""
    merges: bool
    """Whether answers that follow each other were made one message."""
    cuts: bool
    """Whether a conversation that is too long was cut before a question."""

    @classmethod
    def of(cls, shards: ShardSet, model: ModelFiles) -> Server:
        """TemplateError: `template-syntax`."""
        manifest = shards.manifest
        templates = ChatTemplates.of(model, datetime.fromisoformat(str(manifest.config["now"])), ChatTemplate)
        merges = bool(manifest.config.get("merge_consecutive"))
        cuts = manifest.config.get("over_length") == OverLength.SPLIT_AT_TURN
        return cls(templates, ReferenceEngine(model.tokenizer_json), manifest.template_kwargs, merges, cuts)

    def sent(self, conversation: Conversation, turn: np.void) -> tuple[Prompt | TemplateError, bool]:
        """The prompt of the whole conversation, or of the piece that begins at the first question of the document.

        The second, with True, only where conversations were cut and the first is not what the document holds.
        """
        message, kwargs, first = (int(turn[name]) for name in ("message", "kwargs", "first_user"))
        whole = self.prompt(conversation, message, kwargs)
        is_equal = not isinstance(whole, TemplateError) and np.array_equal(digest(whole), turn["digest"])
        if is_equal or not self.cuts or first <= num_system(conversation):
            return whole, False
        return self.prompt(conversation, message, kwargs, first=first), True

    def prompt(
        self, conversation: Conversation, message: int, kwargs: int, *, first: int = 0
    ) -> Prompt | TemplateError:
        """Ids before a message, or why there are none; `kwargs` indexes the set's keyword arguments.

        Messages before `first` are forgotten, but those of the system that the conversation begins with.
        """
        conversation, origin = without_messages(conversation, first)
        if self.merges:
            conversation, merged = merge_consecutive(conversation)
            origin = [origin[index] for index in merged]
        if message not in origin:
            return TemplateError("the conversation has no such message", code="template-raised")
        template = self.templates.for_tools(conversation.tools)
        request = Request(tools=conversation.tools, kwargs=self.kwargs[kwargs])
        try:
            messages = adapt_messages(conversation.messages, probe_form(template))
            text = template.render(messages[: origin.index(message)], request, prompt=True)
        except TemplateError as error:
            return error
        return self.engine.encode([text])[0].ids


@dataclass(slots=True)
class _Account:
    """What became of the turns of a source."""

    state: Literal["read", "missing", "changed"]
    turns: int
    equal: int = 0
    pieces: int = 0
    differing: int = 0
    split: int = 0


@dataclass(slots=True)
class _Run:
    shards: ShardSet
    server: Server
    differences: list[PromptDifference] = field(default_factory=list)


def prove(shards: ShardSet, *, model: ModelFiles) -> ParityCertificate:
    """Compare the prompt of every trained turn.

    Raises:
        TemplateError: `template-syntax`.
        SourceError: a source of the right sha256 cannot be read.
    """
    run = _Run(shards, Server.of(shards, model))
    turns = _all_turns(shards)
    accounts = [
        _prove_source(run, number, turns[turns["source"] == number]) for number in range(len(shards.manifest.sources))
    ]
    return _certificate(run, model, turns, accounts)


def _all_turns(shards: ShardSet) -> Turns:
    """Every trained turn of the rows that can be read, ordered by what its prompt is rendered from."""
    facts = audit_facts(shards)
    parts = [np.zeros(0, TURN)]
    first = 0
    for batch in shards.iter_batches():
        rows, numbers, _ = readable_rows(batch, facts)
        found = trained_turns(rows)
        found["row"] = first + numbers[found["row"]]
        parts.append(found)
        first += batch.num_rows
    turns = np.concatenate(parts)
    return turns[np.lexsort([turns[name] for name in ("kwargs", "message", "line", "source")])]


def _prove_source(run: _Run, number: int, turns: Turns) -> _Account:
    record = run.shards.manifest.sources[number]
    account = _Account(source_state(record), len(turns))
    # Masks by the template's own tags begin wherever those stand: there is no prompt to compare.
    if account.state == "read" and len(turns) and run.shards.manifest.mask == "assistant":
        lines, begins = np.unique(turns["line"], return_index=True)
        of_line = dict(zip(lines.tolist(), np.split(turns, begins[1:]), strict=True))
        for line, conversation in conversations(run.shards, record):
            if line in of_line:
                _prove_row(run, account, conversation, of_line[line])
    return account


def _prove_row(run: _Run, account: _Account, conversation: Conversation, turns: Turns) -> None:
    """Compare the turns of one conversation; equal ones (a row taken twice) are rendered once."""
    sent: dict[tuple[int, int, int], tuple[Prompt | TemplateError, bool]] = {}
    for turn in turns:
        key = (int(turn["message"]), int(turn["kwargs"]), int(turn["first_user"]))
        if key not in sent:
            sent[key] = run.server.sent(conversation, turn)
        prompt, is_piece = sent[key]
        if not isinstance(prompt, TemplateError) and np.array_equal(digest(prompt), turn["digest"]):
            account.equal += 1
            account.pieces += is_piece
        elif not isinstance(prompt, TemplateError) and _is_split(run, turn, prompt):
            account.split += 1
        else:
            account.differing += 1
            if len(run.differences) < _SHOWN_DIFFERENCES:
                run.differences.append(_difference(run, conversation, turn, prompt))


def _is_split(run: _Run, turn: np.void, prompt: Prompt) -> bool:
    """Whether the ids differ only because the set encodes typed control tokens as the text that they are."""
    if run.shards.manifest.config.get("control_tokens") != "split":
        return False
    own = _own_prompt(run, turn)
    return run.server.engine.decode(own.tolist()) == run.server.engine.decode(prompt.tolist())


def _own_prompt(run: _Run, turn: np.void) -> Prompt:
    return document_ids(run.shards.row(int(turn["row"])), int(turn["document"]))[: int(turn["num_prompt"])]


def _difference(
    run: _Run, conversation: Conversation, turn: np.void, prompt: Prompt | TemplateError
) -> PromptDifference:
    own = _own_prompt(run, turn)
    sent = np.zeros(0, np.int32) if isinstance(prompt, TemplateError) else prompt
    position = first_difference(own, sent)
    return PromptDifference(
        place=str(conversation.address),
        message=int(turn["message"]),
        row=int(turn["row"]),
        document=int(turn["document"]),
        position=position,
        trained_on=run.server.engine.decode([i for i in own[position : position + _SHOWN_TOKENS].tolist() if i >= 0]),
        server_sends=run.server.engine.decode(sent[position : position + _SHOWN_TOKENS].tolist()),
        reason=prompt.message if isinstance(prompt, TemplateError) else "",
    )


def document_ids(row: pa.RecordBatch, number: int) -> Prompt:
    """The ids of a document of a batch of one row."""
    ends = np.cumsum(row["seq_lengths"][0].as_py())
    ids = np.asarray(row["input_ids"][0].as_py(), dtype=np.int32)
    return ids[: ends[number]][-row["seq_lengths"][0].as_py()[number] :]


def _certificate(run: _Run, model: ModelFiles, turns: Turns, accounts: Sequence[_Account]) -> ParityCertificate:
    manifest = run.shards.manifest
    equal, differing, split = (sum(getattr(a, name) for a in accounts) for name in ("equal", "differing", "split"))
    # Turns that the manifest counts and no readable row holds are as little proven as those of a lost source.
    expected = max(len(turns), manifest.counts.num_turns)
    stop_ids = _generation_stop_ids(model)
    known = stop_ids if stop_ids is not None else list(model.stop_ids)
    stopped = int(np.isin(turns["stop_id"], known).sum())
    verdict: Verdict = "proven" if equal == expected else "split"
    if equal + split < expected:
        verdict = "unprovable"
    if differing or stopped < len(turns):
        verdict = "differing"
    return ParityCertificate(
        verdict=verdict,
        fingerprint=manifest.fingerprint,
        shards_sha256=[shard.sha256 for shard in manifest.shards],
        mask=manifest.mask,
        model=model.name,
        tokenizer_sha256=model.tokenizer_sha256,
        template_sha256=model.template_sha256,
        num_turns=expected,
        num_equal=equal,
        num_differing=differing,
        num_pieces=sum(account.pieces for account in accounts),
        num_split=split,
        num_unprovable=expected - equal - differing - split,
        parity=equal / max(expected, 1),
        stop_ids=known,
        stop_ids_from="tokenizer" if stop_ids is None else "generation_config.json",
        num_stopped=stopped,
        num_unstopped=len(turns) - stopped,
        sources=[_source_proof(source, account) for source, account in zip(manifest.sources, accounts, strict=True)],
        differences=run.differences,
    )


def _source_proof(source: SourceRecord, account: _Account) -> SourceProof:
    return SourceProof(
        path=source.path,
        sha256=source.sha256,
        state=account.state,
        num_turns=account.turns,
        num_equal=account.equal,
        num_differing=account.differing,
        num_split=account.split,
        num_unprovable=account.turns - account.equal - account.differing - account.split,
    )


def _generation_stop_ids(model: ModelFiles) -> list[int] | None:
    """What generation_config.json stops on; None where it names nothing. The model's files were read before."""
    config = json.loads(model.files.get("generation_config.json", b"{}"))
    named = config.get("eos_token_id")
    if named is None:
        return None
    return sorted(int(i) for i in (named if isinstance(named, list) else [named]))

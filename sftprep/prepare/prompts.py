"""The server's prompts of some rows, to be shown beside what the rows hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer

from sftprep.engines.model import ModelFiles
from sftprep.errors import TemplateError
from sftprep.prepare.prove import Prompt, Server, document_ids
from sftprep.prepare.recorded_sources import conversations
from sftprep.reports.mask_view import PromptView
from sftprep.reports.parity_json import ParityCertificate
from sftprep.shards.read import ShardSet
from sftprep.stages.align import first_difference
from sftprep.stages.turn_prompts import Turns, trained_turns

TurnKey = tuple[int, int, int, int, int]
"""Source, line, message, template keyword arguments, first question: what one prompt is rendered from."""
Prompts = Mapping[TurnKey, Prompt]


def server_prompts(
    shards: ShardSet, rows: Sequence[pa.RecordBatch], *, model: ModelFiles, certificate: ParityCertificate
) -> Prompts:
    """The prompts of the trained turns of readable rows, but those of sources that the certificate calls unprovable."""
    server = Server.of(shards, model)
    turns = {_key(turn): turn for row in rows for turn in trained_turns(row)}
    found: dict[TurnKey, Prompt] = {}
    for number, (source, proof) in enumerate(zip(shards.manifest.sources, certificate.sources, strict=True)):
        own = [key for key in turns if key[0] == number]
        if not own or proof.state != "read":
            continue
        lines = {key[1] for key in own}
        rendered = {line: talk for line, talk in conversations(shards, source) if line in lines}
        for key in own:
            prompt = server.sent(rendered[key[1]], turns[key])[0] if key[1] in rendered else None
            if prompt is not None and not isinstance(prompt, TemplateError):
                found[key] = prompt
    return found


def prompt_views(prompts: Prompts, row: pa.RecordBatch, tokenizer: Tokenizer) -> Iterator[PromptView]:
    """The prompts of the trained turns of a batch of one row, beside the server's."""
    for turn in trained_turns(row):
        own = document_ids(row, int(turn["document"]))[: int(turn["num_prompt"])]
        sent = prompts.get(_key(turn))
        at, size = (int(turn["document"]), int(turn["message"])), len(own)
        if sent is None:
            yield PromptView(*at, size, "unprovable")
        elif np.array_equal(own, sent):
            yield PromptView(*at, size, "equal")
        else:
            position = first_difference(own, sent)
            rest = [(int(i), tokenizer.decode([int(i)], skip_special_tokens=False)) for i in sent[position:]]
            yield PromptView(*at, size, "differing", position, tuple(rest))


def _key(turn: Turns) -> TurnKey:
    source, line, message, kwargs, first = (
        int(turn[name]) for name in ("source", "line", "message", "kwargs", "first_user")
    )
    return source, line, message, kwargs, first

"""What is encoded again: each drawn document whole, and of each prompt the end."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from sftprep.data import RowAddress
from sftprep.engines.fast import EngineChoice
from sftprep.engines.load import load_model
from sftprep.engines.reference import ReferenceEngine
from sftprep.engines.token_bytes import token_table
from sftprep.errors import EngineDiffersError
from sftprep.prepare.recheck import _drawn
from sftprep.prepare.recheck_ids import DrawnDocument, check_ids
from sftprep.stages.encode_batch import TokenTable
from tests.prepare.test_plans import SAMPLES

Own = tuple[EngineChoice, TokenTable]


@pytest.fixture(scope="module")
def own() -> Own:
    """The samples' tokenizer, to which two ends of lines are one token."""
    model = load_model(str(SAMPLES / "model"))
    parts = json.loads(model.tokenizer_json)
    parts["model"]["vocab"]["ĊĊ"] = model.vocab_size
    parts["model"]["merges"].append(["Ċ", "Ċ"])
    model = replace(model, tokenizer_json=json.dumps(parts))
    table = token_table(model)
    assert table is not None
    return EngineChoice(model, ReferenceEngine(model.tokenizer_json), fast=False), table


def document(own: Own, *turns: str, line: int = 1) -> DrawnDocument:
    """A document of whole texts, of which every second one is an answer."""
    choice, table = own
    ids = choice.reference.encode_batch(["".join(turns).encode()]).ids
    ends = np.cumsum(table.lengths[ids]).tolist()
    begins = [1 + ends.index(len("".join(turns[:stop]).encode())) for stop in range(1, len(turns), 2)]
    return DrawnDocument(RowAddress("chats", line), ids, begins, is_joined=False)


def test_documents_that_the_reference_encodes_so_pass(own: Own) -> None:
    opened, ended = "<|im_start|>assistant\n", "<|im_end|>\n"
    drawn = [
        document(own, opened, "an answer"),
        document(own, f"<|im_start|>user\nwhy?{ended}{opened}", f"12 é{ended}", opened, "so"),
        document(own, "no token before\n", "it"),
        document(own, opened, f"{ended}"),
    ]
    check_ids(drawn, *own)
    check_ids([], *own)


@pytest.mark.parametrize("before", ["", "<|im_start|>", "é<|im_end|>\n<|im_start|>"])
def test_a_prompt_that_is_encoded_otherwise_than_the_document_begins_is_named(before: str, own: Own) -> None:
    """Two ends of lines are one token where a text ends with them, not before a word."""
    wrong = document(own, f"{before}x\n\n", "y", line=7)
    assert len(own[0].reference.encode_batch([f"{before}x\n\n".encode()]).ids) < wrong.begins[0]
    right = document(own, f"{before}x\n", "y")
    with pytest.raises(EngineDiffersError, match=r"^chats:7: "):
        check_ids([right, wrong], *own)
    check_ids([right], *own)


def test_a_document_that_is_encoded_otherwise_is_named(own: Own) -> None:
    right = document(own, "<|im_start|>", "the end")
    reference = own[0].reference
    ids = np.concatenate([reference.encode_batch([text]).ids for text in (b"<|im_start|>", b"t", b"he end")])
    wrong = DrawnDocument(RowAddress("chats", 3), ids, [1], is_joined=False)
    with pytest.raises(EngineDiffersError, match=r"^chats:3: "):
        check_ids([right, wrong, right], *own)


def test_the_rows_of_a_sample_are_those_of_every_run() -> None:
    lines = [*range(1, 30_000), 1 << 40, (1 << 40) + 1]
    for one_in in (64, 256, 1024):
        found = _drawn(np.array(lines, dtype=np.uint64), one_in=one_in)
        assert found == [place for place, line in enumerate(lines) if (line * 2654435761 >> 7) % one_in == 0]
        assert len(lines) / one_in / 2 < len(found) < len(lines) / one_in * 2

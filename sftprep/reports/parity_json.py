"""The parity certificate: whether the tokens before every trained turn are those that a server would send."""

from __future__ import annotations

from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field

CERTIFICATE_NAME: Final = "parity.json"
"""Beside the shards."""

Verdict = Literal["proven", "split", "differing", "unprovable"]


PROVEN: Final = frozenset({"proven", "split"})
"""Verdicts that pass: nothing differs but what the set was told to write otherwise."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PromptDifference(_Frozen):
    """A trained turn whose prompt is not the server's, at the first token that differs."""

    place: str = Field(description="file:line of the conversation.")
    message: int = Field(description="The turn's message, counted from 0.")
    row: int
    document: int = Field(description="Of the row, counted from 0.")
    position: int = Field(description="Of the first differing token, counted from the document's first.")
    trained_on: str = Field(description="The tokens of the shards from there on, as text; empty at their end.")
    server_sends: str = Field(description="The server's tokens from there on, as text; empty at their end.")
    reason: str = Field(default="", description="Why the server sends nothing, where its template refuses.")


class SourceProof(_Frozen):
    """What became of the turns of one input file."""

    path: str
    sha256: str
    state: Literal["read", "missing", "changed"]
    num_turns: int
    num_equal: int
    num_differing: int
    num_split: int
    num_unprovable: int


class ParityCertificate(_Frozen):
    """Made again by `sftprep audit --prove`: the same data, model and sources give the same bytes."""

    verdict: Verdict = Field(
        description="proven: every trained turn is equal and ends in a token of the model's generation configuration; "
        "split: so is every turn but those before which the set encodes typed control tokens as plain text, as it was "
        "told to; differing: at least one is not; unprovable: none is known to differ, and some cannot be compared."
    )
    fingerprint: str = Field(description="Of the shard set.")
    shards_sha256: list[str]
    mask: str = Field(description="The set's mask policy; only `assistant` has prompts that can be compared.")
    model: str = Field(description="The server's model directory or hub id.")
    tokenizer_sha256: str
    template_sha256: str
    num_turns: int = Field(description="Trained assistant turns of the shards, with repetition.")
    num_equal: int = Field(description="Turns whose prompt ids are those that the server sends.")
    num_pieces: int = Field(
        description="Of the equal ones, those whose conversation was cut before a question, as pack was told to: what "
        "the server sends where a client has forgotten what came before."
    )
    num_differing: int
    num_split: int = Field(
        description="Turns that differ only where the set encodes typed control tokens as text, as it was told to."
    )
    num_unprovable: int = Field(description="Turns whose source is gone or another, or that the manifest counts alone.")
    parity: float = Field(description="num_equal / num_turns.")
    stop_ids: list[int] = Field(description="Ids on which the server stops.")
    stop_ids_from: Literal["generation_config.json", "tokenizer"] = Field(
        description="tokenizer: the model has no generation_config.json that names any."
    )
    num_stopped: int = Field(description="Turns that end in one of them.")
    num_unstopped: int = Field(description="Turns that do not.")
    sources: list[SourceProof]
    differences: list[PromptDifference] = Field(description="The first of them.")

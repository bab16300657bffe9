"""What two prepared sets differ in: totals, the rule behind each difference, and the first places."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field

RULE_TEXTS: Final[Mapping[str, str]] = {
    "everything-trained": "one side trains every token of the document, prompts too",
    "first-token-trained": "the first token of a document, which nothing predicts, is trained on one side",
    "scaffold-trained": "text that the template writes is trained on one side",
    "separator-trained": "what the template writes after a stop token is trained on one side",
    "other-role-trained": "text of another role than assistant is trained on one side",
    "stop-untrained": "the stop token of an answer is trained on one side only",
    "answer-start-untrained": "the beginning of an answer, but not its end, is trained on one side only",
    "answer-untrained": "an answer, or a part of it, is trained on one side only",
    "context-trained": "history, an answer of weight 0 or a masked part is trained on one side",
    "mask-differs": "a token is trained on one side only",
    "token-prepended": "one side has one more token at the start, such as a second beginning-of-text token",
    "token-appended": "one side has a token or two more at the end, such as a second end token",
    "truncated": "one side ends early",
    "tokenised-differently": "the same text, cut into other tokens",
    "template-text-differs": "text that the template writes differs",
    "content-differs": "the text of a message, or of the tools, differs",
    "ids-differ": "the tokens differ",
}
"""What each rule says."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SideCount(_Frozen):
    """One of the two sets."""

    path: str
    kind: Literal["shards", "prepared"]
    num_documents: int
    num_tokens: int
    num_trained: int


class RuleCount(_Frozen):
    """How many pairs of documents differ first by one rule."""

    rule: str
    trained_by: Literal["left", "right", ""] = Field(description="Which side trains the token, where ids are equal.")
    num_documents: int


class Difference(_Frozen):
    """The first difference of a pair of documents."""

    rule: str
    trained_by: Literal["left", "right", ""]
    left: str = Field(description="Row and document, and file:line where the side is a shard set.")
    right: str
    position: int = Field(description="Of the first differing token, counted from the document's first.")
    reason: str = Field(description="The shard set's reason for that token; empty where neither side is one.")
    before: str = Field(description="The text before it, on the left.")
    left_text: str = Field(description="The left side's tokens from there on, trained ones between ⟦ and ⟧.")
    right_text: str


class DiffReport(_Frozen):
    """Two sets, document by document, aligned by content."""

    same: bool = Field(description="Every document has its equal, ids and mask, on the other side.")
    left: SideCount
    right: SideCount
    num_identical: int
    num_masks_differ: int = Field(description="Pairs with equal ids and other masks.")
    num_ids_differ: int = Field(description="Pairs of like content with other ids.")
    num_only_left: int
    num_only_right: int
    trained_only_left: dict[str, int] = Field(
        description="Tokens, in pairs of equal ids, that only the left side trains, by the shard set's reason."
    )
    trained_only_right: dict[str, int]
    rules: list[RuleCount] = Field(description="The most frequent first.")
    differences: list[Difference] = Field(description="The first of each rule.")
    only_left: list[str] = Field(description="The first places without a partner.")
    only_right: list[str]

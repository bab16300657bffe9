"""Every code that a row's finding can carry, with its severity and what to do about it.

The codes are part of the interface: `--json` reports, quarantine files and scripts name them. They never change
their meaning.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

from sftprep.data import Severity


@dataclass(frozen=True, slots=True)
class Fault:
    """Something wrong in one row, before the row's address is known. `hint` replaces the code's own."""

    code: str
    pointer: str
    message: str
    hint: str = ""


class CodeEntry(NamedTuple):
    """What all findings of a code share."""

    severity: Severity
    hint: str


def _error(hint: str) -> CodeEntry:
    return CodeEntry(Severity.ERROR, hint)


def _warning(hint: str) -> CodeEntry:
    return CodeEntry(Severity.WARNING, hint)


CODES: Final = {
    # The text of the line.
    "invalid-utf8": _error("save the file as UTF-8; rows of another encoding cannot be told from damaged ones"),
    "bad-json": _error("one JSON object a line; a line break inside a string is written \\n"),
    "duplicate-key": _error("readers keep one of the two without saying which: remove one"),
    "non-finite-number": _error("JSON has no NaN and no infinity: write null or leave the key out"),
    "lone-surrogate": _error("half of a character, from text cut at 16-bit units: repair the text where it was cut"),
    "too-deep": _error("nested deeper than 200 levels: no template renders this"),
    "not-an-object": _error(
        'a row is one object a line, such as {"messages": [...]}; a file that is one array is called *.json'
    ),
    # The shape of the row.
    "missing-key": _error("add the key"),
    "unknown-key": _error("nothing in a message is ignored: remove the key, or move it to the row, where it is kept"),
    "wrong-type": _error("give the value the type that the message names"),
    "wrong-value": _error("use one of the values that the message names"),
    "unknown-role": _error("roles are system, developer, user, assistant and tool"),
    "no-messages": _error("a conversation has at least one message"),
    "null-content": _error("only an assistant message that calls tools may have null content; write the text"),
    "bad-weight": _error("weight is 0, 1 or another finite number above 0; train is true or false"),
    "weight-and-train": _error("two keys that mean the same: keep one"),
    "tools-string": _error("write the list itself, not a string that holds JSON: templates would show its quotes"),
    "bad-tool": _error('a tool is {"type": "function", "function": {"name": ..., "parameters": {...}}}'),
    "bad-function-call": _error(
        'a function call\'s value is JSON: {"name": ..., "arguments": {...}}, or a list of them'
    ),
    "misplaced-key": _error("it would be kept as metadata and the model would never see it"),
    "unknown-format": _error("name the format with --format, or rename the keys"),
    "ambiguous-row": _error("name the format with --format; the other keys then count as metadata"),
    "other-format": _error("--format names the format of every row: split the file, or leave the option out"),
    # The conversation.
    "no-assistant": _error("there is nothing to train: a conversation has at least one assistant message"),
    "empty-completion": _error("it would teach the model to answer with nothing: remove it, or give it weight 0"),
    "bad-arguments": _error("arguments are a JSON object, or a string that holds one; without any, write {}"),
    "missing-tool-call-id": _error("the other calls and results of this conversation have ids: give this one its own"),
    "unknown-tool-call-id": _error("a result follows the call that it answers and repeats its id"),
    "duplicate-tool-call-id": _error("two calls that wait for a result have one id: its result could be either's"),
    "unknown-tool": _error("the row's tools do not hold it: declare it, or correct the name"),
    "unknown-row-key": _warning("kept as metadata, not shown to the model; said once a file"),
    "null-as-absent": _warning(
        "a table cannot tell the two apart: write JSONL, or a column of the JSON type, where null is meant; said once "
        "a file"
    ),
    "ends-without-assistant": _warning("what follows the last assistant message is never trained"),
    "late-system": _warning("many templates raise on it, or move it to the front"),
    "consecutive-assistant": _warning("many templates raise on it; packing proves each turn or leaves the row out"),
    "orphan-tool-result": _warning("no tool was called before it"),
    "repeated-tool-result": _warning("the call has a result already"),
    "reused-tool-call-id": _warning("an answered call had this id too: the result is taken as the later call's"),
    "arguments-not-object": _warning("servers give a template the arguments as an object"),
    "bare-tool": _warning('servers take tools as {"type": "function", "function": {...}} only'),
    "starts-with-assistant": _warning("many templates raise on it: a user speaks first"),
    "consecutive-user": _warning("many templates raise on it: join the two, or write the answer between them"),
    "unanswered-call": _warning("give each call the tool's message that answers it"),
    "no-tools": _warning("the model would learn calls of functions that it is not shown: add the row's tools"),
    "duplicate-tool": _warning("a call by this name could mean either: remove one"),
    "bad-schema": _warning("arguments are not checked against it; templates show it to the model as it is"),
    "arguments-misfit": _warning("the model would learn calls that the tool refuses: correct the call or the schema"),
    # What the texts hold.
    "blank-content": _warning("is the text lost? a prompt says something"),
    "unbalanced-reasoning": _warning("<think> and </think> come in pairs, opening first"),
    "reasoning-twice": _warning("many templates would write two blocks: keep the reasoning in one place"),
    "embedded-tool-result": _warning(
        "the model would learn to make up results: write them as messages of the role tool, which are not trained"
    ),
    "mojibake": _warning("UTF-8 that was read as another encoding: decode the source again as UTF-8"),
    "replacement-character": _warning("a reader could not decode this text: read the source with its own encoding"),
    "control-character": _warning("nobody types these: remove them, or see what wrote them"),
}
"""Code → entry, in the order in which documentation lists them."""


def escape(key: object) -> str:
    """A key as one step of a JSON pointer (RFC 6901)."""
    return str(key).replace("~", "~0").replace("/", "~1")

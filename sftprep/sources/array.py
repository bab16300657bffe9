"""The items of a JSON array, one at a time, as the bytes that they were written in; memory holds a chunk and an item.

Where an item ends is found by parsing it, in C, and forgetting what was parsed. What its bytes hold is judged later.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from sftprep.errors import SourceError

# Values are thrown away: numbers need not be converted, and what strings hold is judged with the row.
_DECODER: Final = json.JSONDecoder(parse_int=len, parse_float=len, parse_constant=len, strict=False)
_SPACE: Final = re.compile(r"[ \t\r\n]*")
_MARGIN: Final = 16
"""Characters before the end of what is read in which a fault may be a mere lack of text: a number, an escape."""
_STRICT: Final = json.JSONDecoder(parse_int=len, parse_float=len, parse_constant=len)
"""As the other, but a line end inside a string is a fault: so a row that is cut off does not go on in the next."""
_HEAD_BYTES: Final = 1 << 20
"""What is read at most to know whether lines are lines."""
_BLANK: Final = b" \t\r\n"
_SPREAD: Final = {
    b"{": (
        "a JSON object",
        "write one row a line, as jq -c . does, or jq -c '.KEY[]' where a key of it holds the rows",
    ),
    b"[": ("a JSON array", "call it .json, which may hold a list of rows; or write one a line, as jq -c '.[]' does"),
}
_HINT: Final = "an array file is one list of rows and nothing after it; or write one row a line, as .jsonl"


@dataclass(frozen=True, slots=True)
class ArrayItem:
    """An item's bytes, and where they start in the uncompressed text."""

    raw: bytes
    offset: int


def array_items(chunks: Iterator[bytes | SourceError], *, name: str) -> Iterator[ArrayItem]:
    """Each item in order. SourceError with the item reached: `bad-array` where the text is not one JSON array."""
    text = _Text(chunks)
    number = 1
    try:
        text.open()
        if text.closes():
            return
        while True:
            yield text.item()
            number += 1
            if not text.goes_on():
                return
    except SourceError as error:
        raise SourceError(error.message, code=error.code, place=f"{name}:{number}", hint=error.hint) from error


def refuse_spread(first: list[bytes | SourceError], chunks: Iterator[bytes | SourceError], *, name: str) -> None:
    """SourceError `not-jsonl` where what should hold a row a line begins with a value of several lines.

    Each of these lines would be an error otherwise. What is read to know it is put behind `first`.
    """
    head, is_whole = _head(first), False
    while b"\n" not in head and len(head) < _HEAD_BYTES and not is_whole:
        is_whole = not _extended(first, chunks)
        head = _head(first)
    line = head.partition(b"\n")[0].rstrip(_BLANK)
    if not line.startswith((b"{", b"[")) or (line.startswith(b"{") and line.endswith(b"}")):
        return
    while len(head) < _HEAD_BYTES and not is_whole:
        is_whole = not _extended(first, chunks)
        head = _head(first)
    if _is_spread(head.decode("utf-8", "surrogateescape"), is_whole=is_whole):
        what, hint = _SPREAD[line[:1]]
        raise SourceError(f"is {what} over several lines, not JSONL", code="not-jsonl", place=name, hint=hint)


def _head(first: list[bytes | SourceError]) -> bytes:
    """What has been read, from its first character on."""
    read = b"".join(piece for piece in first if isinstance(piece, bytes))
    return read.removeprefix(codecs.BOM_UTF8).lstrip(_BLANK)


def _extended(first: list[bytes | SourceError], chunks: Iterator[bytes | SourceError]) -> bool:
    """Read another piece. False where there is none, or no more than an error."""
    chunk = next(chunks, None)
    if chunk is not None:
        first.append(chunk)
    return isinstance(chunk, bytes)


def _is_spread(text: str, *, is_whole: bool) -> bool:
    """Whether the value that the text begins with goes on behind its first line; unless `is_whole`, so may the text."""
    first = text.find("\n")
    second = text.find("\n", first + 1)
    try:
        return 0 <= first < _STRICT.raw_decode(text)[1]
    except json.JSONDecodeError as error:
        if not is_whole and error.pos >= len(text) - _MARGIN:
            return True
        # A bracket alone is no row that was cut off, unless a row and no comma follow.
        return not text[1:first].strip() and error.pos > second + 1 > 1
    except RecursionError:
        return False


class _Text:
    """Text that is read in pieces. Bytes that are not UTF-8 are kept, to be judged with their item."""

    def __init__(self, chunks: Iterator[bytes | SourceError]) -> None:
        self._chunks = chunks
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._text = ""
        self._at = 0
        self._offset = 0
        self._ended = False

    def open(self) -> None:
        """Go past the bracket that opens the array."""
        if self._peek() == "\ufeff":
            self._take(1)
        if self._peek() != "[":
            raise _fault("no array begins here")
        self._take(1)

    def item(self) -> ArrayItem:
        """The value that stands next."""
        if not self._peek():
            raise _fault("the array is cut off")
        while True:
            try:
                end = _DECODER.raw_decode(self._text, self._at)[1]
            except json.JSONDecodeError as error:
                self._refuse(error)
            except RecursionError as error:
                raise _fault("the item is nested too deeply") from error
            else:
                # A number near the end of what is read may go on.
                if self._ended or self._text[end - 1] in '}]"' or end + _MARGIN < len(self._text):
                    offset = self._offset
                    return ArrayItem(self._take(end - self._at), offset)
            self._more()

    def closes(self) -> bool:
        """Go past the bracket that closes the array, with nothing after it, where that stands next."""
        if self._peek() != "]":
            return False
        self._take(1)
        if self._peek():
            raise _fault("there is more after the array's end")
        return True

    def goes_on(self) -> bool:
        """Go past the comma; False past the bracket that closes the array."""
        if self.closes():
            return False
        after = self._peek()
        if after != ",":
            raise _fault(f"after the item comes {after!r}, must be a comma or the end" if after else "it is cut off")
        self._take(1)
        return True

    def _refuse(self, error: json.JSONDecodeError) -> None:
        """SourceError unless more text may help."""
        may_go_on = error.pos >= len(self._text) - _MARGIN or error.msg.startswith("Unterminated string")
        if self._ended or not may_go_on:
            raise _fault(f"not JSON: {error.msg.lower()}, character {error.pos - self._at + 1} of the item") from error

    def _peek(self) -> str:
        """The next character that is not white space, which stays; empty at the end."""
        while True:
            space = _SPACE.match(self._text, self._at)
            self._take(space.end() - self._at if space else 0)
            if self._at < len(self._text) or self._ended:
                return self._text[self._at : self._at + 1]
            self._more()

    def _take(self, count: int) -> bytes:
        raw = self._text[self._at : self._at + count].encode("utf-8", "surrogateescape")
        self._at += count
        self._offset += len(raw)
        return raw

    def _more(self) -> None:
        """Read at least as much again as is held, so that an item of many pieces is parsed few times."""
        pieces = [self._text[self._at :]]
        wanted = max(1, len(pieces[0]))
        while wanted > 0 and not self._ended:
            chunk = next(self._chunks, b"")
            if isinstance(chunk, SourceError):
                raise chunk
            self._ended = not chunk
            pieces.append(self._decoder.decode(chunk, final=self._ended))
            wanted -= len(pieces[-1])
        self._text, self._at = "".join(pieces), 0


def _fault(what: str) -> SourceError:
    return SourceError(what, code="bad-array", hint=_HINT)

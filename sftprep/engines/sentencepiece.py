"""The bytes of each id of a SentencePiece-style tokenizer, from its tokenizer.json alone: `▁` is a space.

Its decoder joins the pieces, with spaces for `▁` and one byte for each `<0xNN>`, and takes one space from the front
(Kudo and Richardson, 2018, section 3.2). Some put a `▁` before a text, or before each stretch between added tokens.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from sftprep.arrow import byte_strings
from sftprep.stages.encode_batch import Prefix

BYTE_PIECES: Final = tuple(f"<0x{byte:02X}>" for byte in range(256))
"""What each byte is called where a character is in no piece."""
_SPACE: Final = "▁"
_OF_NO_TEXT: Final = b"\xff"
_BYTE: Final = re.compile(r"<0x\+?[0-9A-Fa-f]{1,2}>")
_SPACES: Final = {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "}
_JOINED: Final = [_SPACES, {"type": "ByteFallback"}, {"type": "Fuse"}]
_FROM_THE_FRONT: Final = {"type": "Strip", "content": " ", "start": 1, "stop": 0}


def joins_pieces(decoder: Any) -> bool:
    """Whether a decoder, as its JSON, joins pieces in this way."""
    if not isinstance(decoder, dict) or decoder.get("type") != "Sequence":
        return False
    return decoder.get("decoders") in (_JOINED, [*_JOINED, _FROM_THE_FRONT])


def bytes_of_pieces(pieces: Sequence[str]) -> list[bytes]:
    """What each piece decodes to, behind another."""
    found = [piece.replace(_SPACE, " ").encode("utf-8", "surrogatepass") for piece in pieces]
    for number, piece in enumerate(pieces):
        if len(piece) == 6 and piece[0] == "<" and _BYTE.fullmatch(piece):
            found[number] = bytes([int(piece[3:5], 16)])
    return found


def prefix_of(parts: Mapping[str, Any], pieces: Sequence[bytes]) -> Prefix | None:
    """Where a tokenizer, as its JSON, puts a space before a text; `pieces` are the bytes of its ids.

    What is said here decides how many rows can be proven, never what is proven: the bytes of a text say that.
    """
    steps = [*_steps(parts.get("normalizer")), *_steps(parts.get("pre_tokenizer"))]
    prepends = any(step.get("type") == "Prepend" and step.get("prepend") == _SPACE for step in steps)
    schemes = [_scheme(step) for step in steps if step.get("type") == "Metaspace"]
    if not prepends and set(schemes) <= {"never"}:
        return None
    cuts = np.zeros(len(pieces), dtype=np.bool_)
    # A normaliser comes before the tokens that are matched in what it makes.
    cuts[[token["id"] for token in parts["added_tokens"] if not (prepends and token.get("normalized"))]] = True
    bare = [piece[1:] if piece[:1] == b" " else _OF_NO_TEXT for piece in pieces]
    sizes = np.fromiter(map(len, [*pieces, *bare]), np.int64, 2 * len(pieces))
    return Prefix(cuts, prepends or "always" in schemes, byte_strings(b"".join([*pieces, *bare]), sizes))


def _steps(part: Any) -> list[Mapping[str, Any]]:
    """A normaliser or pre-tokenizer, as its JSON, as the steps that it is made of."""
    if not isinstance(part, dict):
        return []
    inner = [*part.get("normalizers", ()), *part.get("pretokenizers", ())]
    return [step for item in inner for step in _steps(item)] or [part]


def _scheme(metaspace: Mapping[str, Any]) -> str:
    """Where a pre-tokenizer puts the space; older files say only whether."""
    scheme = metaspace.get("prepend_scheme")
    if scheme is None:
        return "always" if metaspace.get("add_prefix_space", True) else "never"
    return str(scheme)

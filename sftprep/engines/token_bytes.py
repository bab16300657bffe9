"""The bytes of each id of a byte-level tokenizer, from its tokenizer.json alone."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sftprep.arrow import pieces
from sftprep.engines.model import ModelFiles
from sftprep.stages.encode_batch import TokenTable


def token_table(model: ModelFiles) -> TokenTable | None:
    """The bytes that each id decodes to; None where ids do not decode to the bytes of their own, one after another.

    That is so of byte-level BPE, whose decoder joins the bytes of all pieces (Radford et al., 2019, section 2.2).
    """
    parts = json.loads(model.tokenizer_json)
    if parts["model"].get("type") != "BPE" or not _is_byte_level(parts.get("decoder")):
        return None
    table = {number: piece for piece, number in parts["model"]["vocab"].items()}
    size = max([*table, *(token["id"] for token in parts["added_tokens"])]) + 1
    found = _all_bytes([table.get(number, "") for number in range(size)])
    for token in parts["added_tokens"]:
        found[token["id"]] = token["content"].encode("utf-8", "surrogatepass")
    return TokenTable(
        pieces=pieces(found),
        lengths=np.array([len(piece) for piece in found], dtype=np.int64),
        stop_ids=np.array(sorted(model.stop_ids), dtype=np.int32),
    )


def _is_byte_level(decoder: Any) -> bool:
    if not isinstance(decoder, dict):
        return False
    inner = decoder.get("decoders")
    if decoder.get("type") == "Sequence" and isinstance(inner, list):
        return len(inner) == 1 and _is_byte_level(inner[0])
    return bool(decoder.get("type") == "ByteLevel")


def _all_bytes(pieces: Sequence[str]) -> list[bytes]:
    """The bytes of each piece, all translated at once."""
    of_character = {ord(character): chr(byte) for character, byte in bytes_of_characters().items()}
    try:
        joined = "".join(pieces).translate(of_character).encode("latin-1")
    except UnicodeEncodeError:
        # A word was added to the vocabulary as it is: each piece by itself.
        return [_bytes(piece, of_character) for piece in pieces]
    ends = list(itertools.accumulate(map(len, pieces), initial=0))
    return [joined[start:stop] for start, stop in itertools.pairwise(ends)]


def _bytes(piece: str, of_character: Mapping[int, str]) -> bytes:
    if all(ord(character) in of_character for character in piece):
        return piece.translate(of_character).encode("latin-1")
    return piece.encode("utf-8", "surrogatepass")


def bytes_of_characters() -> dict[str, int]:
    """Byte-level BPE writes printable Latin-1 bytes as themselves, the others as U+0100 and on, in their order."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + n): byte for n, byte in enumerate(others)}

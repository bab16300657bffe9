"""The bytes of each id of a tokenizer, from its tokenizer.json alone: of a byte-level one here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from sftprep.arrow import byte_strings
from sftprep.engines.model import ModelFiles
from sftprep.engines.sentencepiece import bytes_of_pieces, joins_pieces, prefix_of
from sftprep.stages.encode_batch import TokenTable


def bytes_of_characters() -> dict[str, int]:
    """Byte-level BPE writes printable Latin-1 bytes as themselves, the others as U+0100 and on, in their order."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + n): byte for n, byte in enumerate(others)}


_BYTE: Final = bytes_of_characters()
_CHARACTERS: Final = "".join(sorted(_BYTE, key=lambda character: _BYTE[character]))
_BYTE_OF_UNIT: Final = np.full(1 << 16, -1, dtype=np.int16)
"""The byte of each UTF-16 unit; -1 of those that stand for none."""
_BYTE_OF_UNIT[[ord(character) for character in _BYTE]] = list(_BYTE.values())


def token_table(model: ModelFiles, parts: Mapping[str, Any] | None = None) -> TokenTable | None:
    """The bytes that each id decodes to; None where ids do not decode to the bytes of their own, one after another.

    That is so of byte-level BPE, whose decoder joins the bytes of all pieces (Radford et al., 2019, section 2.2), and,
    but for a space in front, of SentencePiece-style tokenizers. `parts` is the JSON of the model's tokenizer.json,
    where somebody has read it.
    """
    parts = json.loads(model.tokenizer_json) if parts is None else parts
    is_spaced = joins_pieces(parts.get("decoder"))
    if parts["model"].get("type") != "BPE" or not (is_spaced or _is_byte_level(parts.get("decoder"))):
        return None
    found = _spellings(parts, as_bytes=not is_spaced)
    prefix = None
    if is_spaced:
        pieces = bytes_of_pieces(found)
        data, lengths = b"".join(pieces), np.fromiter(map(len, pieces), np.int64, len(pieces))
        joined, prefix = byte_strings(data, lengths), prefix_of(parts, pieces)
    else:
        spelled, lengths = _all_bytes(found)
        joined = byte_strings(spelled, lengths)
    stop_ids = np.array(sorted(model.stop_ids), dtype=np.int32)
    control = set(model.control_tokens)
    is_control = np.zeros(len(found), dtype=np.bool_)
    is_control[[token["id"] for token in parts["added_tokens"] if token["content"] in control]] = True
    return TokenTable(joined, lengths=lengths, stop_ids=stop_ids, is_control=is_control, prefix=prefix)


def _spellings(parts: Mapping[str, Any], *, as_bytes: bool) -> list[str]:
    """The piece of each id; those of added tokens as bytes are spelled, where pieces are."""
    vocab: Mapping[str, int] = parts["model"]["vocab"]
    found = [""] * (1 + max([*vocab.values(), *(token["id"] for token in parts["added_tokens"])]))
    for piece, number in vocab.items():
        found[number] = piece
    for token in parts["added_tokens"]:
        found[token["id"]] = _spelled(token["content"]) if as_bytes else token["content"]
    return found


def _is_byte_level(decoder: Any) -> bool:
    if not isinstance(decoder, dict):
        return False
    inner = decoder.get("decoders")
    if decoder.get("type") == "Sequence" and isinstance(inner, list):
        return len(inner) == 1 and _is_byte_level(inner[0])
    return bool(decoder.get("type") == "ByteLevel")


def _all_bytes(spelled: list[str]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """The bytes of all pieces end to end, and how many each has."""
    found = _bytes("".join(spelled))
    if (found < 0).any():
        # A word was added to the vocabulary as it is.
        spelled = [piece if _BYTE.keys() >= set(piece) else _spelled(piece) for piece in spelled]
        found = _bytes("".join(spelled))
    return found.astype(np.uint8), np.fromiter(map(len, spelled), np.int64, len(spelled))


def _bytes(spelled: str) -> npt.NDArray[np.int16]:
    found: npt.NDArray[np.int16] = _BYTE_OF_UNIT[np.frombuffer(spelled.encode("utf-16-le", "surrogatepass"), "<u2")]
    return found


def _spelled(text: str) -> str:
    """A text in the characters of its UTF-8 bytes."""
    return "".join([_CHARACTERS[byte] for byte in text.encode("utf-8", "surrogatepass")])

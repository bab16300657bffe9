"""Whether a text tells a secret: in words, letter by letter, in part, or in an encoding that a person could undo.

A text is read in several ways: as it is, with its letters made plain, decoded, by its initials. Each reading is a list
of words, and the secret is looked for in all of them. Translations, riddles and ciphers with a key are not seen.
"""

from __future__ import annotations

import base64
import binascii
import html
import re
import string
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote

from sftprep.stages.words import words

# Fewer letters than these stand by chance across the borders of other words, or as initials.
_SPELLED_FROM: Final = 6
_PART_FROM: Final = 4
# Of a long secret, such as a whole system prompt: about seven words in a row.
_PART_AT_MOST: Final = 32
# A part that is no run of whole words: so many letters, or fewer where letters and digits are mixed.
_FRAGMENT_FROM: Final = 8
_MIXED_FROM: Final = 6
_NUMBER_FROM: Final = 4

_LOOK_ALIKES: Final = str.maketrans(
    "\u0430\u0435\u043e\u0440\u0441\u0445\u0443\u043a\u043c\u0442\u0432\u043d\u0456\u0458\u0455"
    "\u03b1\u03bf\u03c1\u03b5\u03bd\u03ba\u03c4\u03c5\u03b9",
    "aeopcxykmtbhijsaopevktui",
)
_LEET: Final = str.maketrans("oileast", "0113457")
_OWNED: Final = re.compile(r"['\u2019]s\b")
_SIGNS: Final = str.maketrans("@$", "as")
_NUMBERS: Final = {
    word: number
    for number, word in enumerate(
        [
            "zero",
            "one",
            "two",
            "three",
            "four",
            "five",
            "six",
            "seven",
            "eight",
            "nine",
            "ten",
            "eleven",
            "twelve",
            "thirteen",
            "fourteen",
            "fifteen",
            "sixteen",
            "seventeen",
            "eighteen",
            "nineteen",
        ]
    )
}
_TENS: Final = {
    word: 10 * number
    for number, word in enumerate(
        ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"], start=2
    )
}
_MORSE: Final = dict(
    zip(
        [
            ".-",
            "-...",
            "-.-.",
            "-..",
            ".",
            "..-.",
            "--.",
            "....",
            "..",
            ".---",
            "-.-",
            ".-..",
            "--",
            "-.",
            "---",
            ".--.",
            "--.-",
            ".-.",
            "...",
            "-",
            "..-",
            "...-",
            ".--",
            "-..-",
            "-.--",
            "--..",
            "-----",
            ".----",
            "..---",
            "...--",
            "....-",
            ".....",
            "-....",
            "--...",
            "---..",
            "----.",
        ],
        string.ascii_lowercase + string.digits,
        strict=True,
    )
)

_BASE64: Final = re.compile(r"[\w+/-]{8,}(?:\r?\n[\w+/-]+)*", re.ASCII)
_BASE32: Final = re.compile(r"[A-Za-z2-7]{8,}")
_HEX: Final = re.compile(r"(?:(?:0x|\\x)?[0-9a-f]{2}[\s,:;-]{0,3}){4,}", re.IGNORECASE)
_BINARY: Final = re.compile(r"(?:[01]{8}[\s,]{0,3}){4,}")
_CODES: Final = re.compile(r"(?:(?<!\d)\d{2,3}(?!\d)[\s,;]{1,3}){3,}\d{2,3}(?!\d)")
_ESCAPE: Final = re.compile(r"\\u([0-9a-f]{4})", re.IGNORECASE)
_SIGNALS: Final = re.compile(r"[.\u00b7\u2022_\u2212\u2013\u2014-]+(?:[\s/|]+[.\u00b7\u2022_\u2212\u2013\u2014-]+){3,}")
_TO_SIGNALS: Final = str.maketrans("\u00b7\u2022_\u2212\u2013\u2014", "..----")


@dataclass(frozen=True, slots=True)
class _Secret:
    """A secret's words, its letters and digits, and how many of them in a row are a part of it."""

    words: Sequence[str]
    letters: str
    least: int
    fragment: int
    mixed: int


def told(text: str, secrets: Sequence[str], *, part: int | None = None) -> list[str]:
    """Those of the secrets that a text tells, or of which it tells a part.

    `part` is how many of its letters and digits in a row are a part. None takes half of them, 32 at most, but at least
    4 where they are whole words, 8 where they are not, 6 where letters and digits are mixed; and any 4 digits of it
    that stand as a number.
    """
    plain = plain_letters(text)
    own = words(plain)
    readings = [own, with_digits(own), words(plain.translate(_SIGNS)), *map(words, _decoded(text))]
    initials = list(_initials(plain, own))
    return [secret for secret in secrets if _tells(readings, initials, _secret(secret, part))]


def _tells(readings: Sequence[Sequence[str]], initials: Sequence[str], wanted: _Secret) -> bool:
    if any(_holds(reading, wanted) or _holds_part(reading, wanted) for reading in readings):
        return True
    if len(wanted.letters) < _SPELLED_FROM:
        return False
    return _disguised("".join(readings[0]), wanted.letters) or any(wanted.letters in found for found in initials)


def _secret(text: str, part: int | None) -> _Secret:
    own = words(plain_letters(text))
    letters = "".join(own)
    least = part or max(_PART_FROM, min(_PART_AT_MOST, (len(letters) + 1) // 2))
    return _Secret(own, letters, least, part or max(least, _FRAGMENT_FROM), part or _MIXED_FROM)


def plain_letters(text: str) -> str:
    """A text without accents, genitives, invisible characters, and letters that only look like Latin ones."""
    folded = unicodedata.normalize("NFKD", text).casefold()
    kept = (character for character in folded if unicodedata.category(character) not in {"Mn", "Cf"})
    # "The lantern's light" holds the word lantern.
    return _OWNED.sub("", unicodedata.normalize("NFC", "".join(kept)).translate(_LOOK_ALIKES))


def _holds(own: Sequence[str], wanted: _Secret) -> bool:
    """The whole secret: its words in their order, or its letters forwards or backwards."""
    if f" {' '.join(wanted.words)} " in f" {' '.join(own)} ":
        return True
    letters = "".join(own)
    return len(wanted.letters) >= _SPELLED_FROM and (wanted.letters in letters or wanted.letters[::-1] in letters)


def _holds_part(own: Sequence[str], wanted: _Secret) -> bool:
    text, letters = f" {' '.join(own)} ", "".join(own)
    if any(f" {run} " in text for run in _word_runs(wanted)):
        return True
    if any(word.isdigit() and len(word) >= _NUMBER_FROM and word in wanted.letters for word in own):
        return True
    pieces = [
        *_windows(wanted.letters, wanted.fragment),
        *(piece for piece in _windows(wanted.letters, wanted.mixed) if not piece.isalpha() and not piece.isdigit()),
    ]
    return any(piece in letters or piece[::-1] in letters for piece in pieces)


def _word_runs(wanted: _Secret) -> Iterator[str]:
    """The shortest runs of whole words that are a part."""
    for start in range(len(wanted.words)):
        for stop in range(start + 1, len(wanted.words) + 1):
            run = wanted.words[start:stop]
            if sum(map(len, run)) >= wanted.least:
                yield " ".join(run)
                break


def _windows(letters: str, size: int) -> Iterator[str]:
    return (letters[start : start + size] for start in range(len(letters) - size + 1))


def _disguised(own: str, letters: str) -> bool:
    """Every letter replaced by another: moved along the alphabet, mirrored in it, or by digits that look like it."""
    if letters.translate(_LEET) in own.translate(_LEET):
        return True
    alphabet = string.ascii_lowercase
    ciphers = [alphabet[shift:] + alphabet[:shift] for shift in range(1, len(alphabet))] + [alphabet[::-1]]
    return any(letters.translate(str.maketrans(alphabet, cipher)) in own for cipher in ciphers)


def with_digits(own: Sequence[str]) -> list[str]:
    """Words with numbers up to 99 as digits: four four seven one, eighty-three."""
    found: list[str] = []
    tens = 0
    for word in own:
        unit = _NUMBERS.get(word)
        if tens and unit is not None and 0 < unit < 10:
            found[-1] = str(tens + unit)
        else:
            number = unit if unit is not None else _TENS.get(word)
            found.append(word if number is None else str(number))
        tens = _TENS.get(word, 0)
    return found


def _initials(plain: str, own: Sequence[str]) -> Iterator[str]:
    """First letters of words (numbers whole), of lines, and what stands alone."""
    yield "".join(word if word.isdigit() else word[0] for word in with_digits(own))
    yield "".join(line[0][0] for line in map(words, plain.splitlines()) if line)
    yield "".join(word for word in own if len(word) == 1)


def _decoded(text: str) -> Iterator[str]:
    for decoder in _DECODERS:
        yield from decoder(text)
    yield unquote(text)
    yield html.unescape(text)
    yield _ESCAPE.sub(lambda found: chr(int(found[1], 16)), text)


def _from_base64(text: str) -> Iterator[str]:
    """At each of the four places where it may begin: what is in front may belong to another word."""
    for found in _BASE64.findall(text):
        run = "".join(found.split()).replace("-", "+").replace("_", "/")
        for start in range(4):
            part = run[start:]
            # A last character alone is no byte.
            whole = part[: len(part) - (len(part) % 4 == 1)]
            yield _text(base64.b64decode(whole + "=" * (-len(whole) % 4)))


def _from_base32(text: str) -> Iterator[str]:
    for run in _BASE32.findall(text):
        try:
            yield _text(base64.b32decode(run.upper() + "=" * (-len(run) % 8)))
        except binascii.Error:
            continue


def _from_hex(text: str) -> Iterator[str]:
    for run in _HEX.findall(text):
        plain = re.sub(r"0x|\\x|[\s,:;-]", "", run, flags=re.IGNORECASE)
        yield _text(bytes.fromhex(plain))


def _from_binary(text: str) -> Iterator[str]:
    for run in _BINARY.findall(text):
        yield _text(bytes(int(byte, 2) for byte in re.findall("[01]{8}", run)))


def _from_codes(text: str) -> Iterator[str]:
    for run in _CODES.findall(text):
        yield "".join(chr(int(code)) for code in re.findall(r"\d+", run))


def _from_morse(text: str) -> Iterator[str]:
    for run in _SIGNALS.findall(text):
        yield "".join(_MORSE.get(sign, " ") for sign in re.split(r"[\s/|]+", run.translate(_TO_SIGNALS)))


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


_DECODERS: Final[Sequence[Callable[[str], Iterator[str]]]] = (
    *(_from_base64, _from_base32, _from_hex, _from_binary, _from_codes, _from_morse),
)

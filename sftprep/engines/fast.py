"""Fast engines: ids of many texts at once, equal to the reference or not used.

Both are tried in this order, and gave the reference's ids on every text tried. gigatoken (MIT) is the faster one, and
does not load a vocabulary that lacks a byte; fastokens (Apache-2.0) does. Both read the model's own tokenizer.json and
have wheels for Linux and macOS, x86 and ARM.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np
import numpy.typing as npt

from sftprep.engines.digits import at_other_digits, digits_as_tokens, may_have_other_digits
from sftprep.engines.pieces import Cutter
from sftprep.engines.reference import ReferenceEngine
from sftprep.engines.sentencepiece import BYTE_PIECES
from sftprep.engines.token_bytes import bytes_of_characters
from sftprep.stages.encode_batch import EncodedTexts, Ints, flat_offsets

if TYPE_CHECKING:
    from sftprep.engines.model import ModelFiles

GIGATOKEN: Final = "gigatoken"
FASTOKENS: Final = "fastokens"
FAST_FROM: Final = 3 << 19
"""Bytes of text that the reference encodes in the time that loading a fast engine takes (SmolLM2 1.2 MB, Qwen3 1.9)."""


class BatchEngine(Protocol):
    """Texts to ids, many at once, as a server encodes rendered prompts: no special token is added."""

    name: str

    def encode_batch(self, texts: Sequence[bytes]) -> EncodedTexts:
        """Encode UTF-8 texts."""


class GigatokenBatch:
    """gigatoken on the same tokenizer.json."""

    name = GIGATOKEN

    def __init__(self, tokenizer_json: str) -> None:
        # An extra; and its import takes 0.2 s that nobody without it should wait for.
        import gigatoken

        self._tokenizer = gigatoken.Tokenizer.from_json(tokenizer_json.encode())

    def encode_batch(self, texts: Sequence[bytes]) -> EncodedTexts:
        """Encode UTF-8 texts, in this thread: workers are processes."""
        layout = self._tokenizer.encode_batch(list(texts), parallel=False).layout
        offsets = np.asarray(layout.offsets.data, dtype=np.int64)
        ids = np.asarray(layout.content.data)[offsets[0] : offsets[-1]]
        return EncodedTexts(ids.astype(np.int32, copy=False), offsets - offsets[0])


class FastokensBatch:
    """fastokens on the same tokenizer.json, the reference where a text holds a byte that its vocabulary lacks."""

    name = FASTOKENS

    def __init__(self, tokenizer_json: str, reference: ReferenceEngine | None = None, *, num_ids: int = 0) -> None:
        """`reference` is that of the same tokenizer.json, made when it is first needed unless it is given.

        `num_ids` is the least number that all ids are below, 0 where nobody has counted yet.
        """
        # An extra, as above.
        import fastokens

        self._json = tokenizer_json
        self._given = reference
        cut = digits_as_tokens(tokenizer_json, lambda: self._reference, num_ids)
        self._cuts_digits = cut is not None
        changed, self._first_unknown = (tokenizer_json, _NO_ID) if cut is None else cut
        self._tokenizer = fastokens.Tokenizer.from_json_str(changed)

    def encode_batch(self, texts: Sequence[bytes]) -> EncodedTexts:
        """Encode UTF-8 texts."""
        pieces = [text.decode() for text in texts]
        counts = self._cut(pieces)
        ids, offsets = self._tokenizer.encode_batch_flat(pieces, add_special_tokens=False)
        borders = np.frombuffer(offsets, dtype=np.int64)
        found = EncodedTexts(
            np.frombuffer(ids, dtype=np.int32), borders if counts is None else borders[flat_offsets(counts)]
        )
        unknown = np.flatnonzero(found.ids >= self._first_unknown)
        return self._by_reference(texts, found, unknown) if len(unknown) else found

    def _cut(self, texts: list[str]) -> Ints | None:
        """Put the pieces that digits beyond ASCII cut a text into in its place; of how many each text is, if any is."""
        if not self._cuts_digits:
            return None
        cut = {n: at_other_digits(text) for n, text in enumerate(texts) if may_have_other_digits(text)}
        if not cut:
            return None
        counts = np.ones(len(texts), dtype=np.int64)
        for number, pieces in reversed(cut.items()):
            texts[number : number + 1] = pieces
            counts[number] = len(pieces)
        return counts

    def _by_reference(
        self, texts: Sequence[bytes], found: EncodedTexts, unknown: npt.NDArray[np.int64]
    ) -> EncodedTexts:
        """The same with the texts encoded again that these tokens are of."""
        own = [found.ids[start:stop] for start, stop in itertools.pairwise(found.offsets.tolist())]
        for number in np.unique(np.searchsorted(found.offsets, unknown, side="right") - 1).tolist():
            own[number] = self._reference.encode_batch([texts[number]]).ids
        return EncodedTexts(np.concatenate(own), flat_offsets([len(ids) for ids in own]))

    @functools.cached_property
    def _reference(self) -> ReferenceEngine:
        return self._given or ReferenceEngine(self._json)


_NO_ID: Final = 1 << 31


def fast_engine(model: ModelFiles, reference: ReferenceEngine) -> BatchEngine | None:
    """The first engine that is installed, loads the model's tokenizer, and agrees with the reference on the probe."""
    # gigatoken would find a byte missing after it has read the whole tokenizer.
    has_bytes = any(all(map(reference.has, spelled)) for spelled in (bytes_of_characters(), BYTE_PIECES))
    fastokens = functools.partial(FastokensBatch, reference=reference, num_ids=model.vocab_size)
    for make in (GigatokenBatch, fastokens) if has_bytes else (fastokens,):
        try:
            return _tried(make, model, reference)
        except (ImportError, _UnusableError):
            continue
    return None


class _UnusableError(Exception):
    """An engine does not load a tokenizer, or gives other ids."""


def _tried(make: Callable[[str], BatchEngine], model: ModelFiles, reference: BatchEngine) -> BatchEngine:
    try:
        engine = make(model.tokenizer_json)
        is_equal = agrees(engine, reference, probe_texts(model))
    except ImportError:
        raise
    except Exception as error:  # what they raise for a tokenizer that they do not know is anything
        raise _UnusableError(str(error)) from error
    if not is_equal:
        raise _UnusableError("it gives other ids")
    return engine


class EngineChoice:
    """The engine of a process: a fast one where there is text enough to pay its loading, until then the reference.

    `expected` is how many bytes will come, as far as that is known: with so many it is fast from the first text on,
    otherwise from where the reference has taken as long as loading would have.
    """

    def __init__(self, model: ModelFiles, reference: ReferenceEngine, *, fast: bool, expected: int = 0) -> None:
        self.reference = reference
        self.engine: BatchEngine = reference
        self._model = model
        self._fast = fast
        self._expected = expected
        known = 0 if expected >= FAST_FROM else FAST_FROM
        self._until_fast = known if fast else -1

    def encode_batch(self, texts: Sequence[bytes]) -> EncodedTexts:
        """Encode with the engine of now; the reference encodes what several texts share once."""
        if self.engine is not self.reference:
            return self.engine.encode_batch(texts)
        cut = self.cutter.cut(texts)
        if self._until_fast >= 0:
            self._until_fast -= cut.num_bytes
            if self._until_fast < 0:
                self.engine = fast_engine(self._model, self.reference) or self.reference
        if self.engine is not self.reference:
            return self.engine.encode_batch(texts)
        return cut.joined(self.reference.encode_batch(cut.pieces))

    @functools.cached_property
    def cutter(self) -> Cutter:
        """Cuts texts where the tokenizer does."""
        return Cutter(self.reference.added, self.reference.cutting)

    @functools.cached_property
    def middle(self) -> EngineChoice:
        """The same for texts that stand in the middle of another: no prefix space is added."""
        tokenizer_json = self.reference.middle_json()
        model = replace(self._model, tokenizer_json=tokenizer_json)
        return EngineChoice(model, ReferenceEngine(tokenizer_json), fast=self._fast, expected=self._expected)


def agrees(engine: BatchEngine, reference: BatchEngine, texts: Sequence[bytes]) -> bool:
    """Whether two engines give the same ids for each text."""
    own, other = engine.encode_batch(texts), reference.encode_batch(texts)
    return bool(np.array_equal(own.offsets, other.offsets) and np.array_equal(own.ids, other.ids))


_SCRIPTS: Final = (
    "The quick brown fox can't jump over 13 lazy dogs; it's 3.14159 o'clock, isn't it?",
    "Größe, naïve café, Łódź, İstanbul, ǅ and ﬁ",
    "Съешь же ещё этих мягких французских булок",
    "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία",
    "我能吞下玻璃而不伤身体。繁體中文，標點！",
    "いろはにほへと ちりぬるを カタカナ ﾊﾝｶｸ",
    "키스의 고유조건은 입술끼리 만나야 한다",
    "نص حكيم له سر قاطع وذو شأن عظيم",
    "דג סקרן שט בים מאוכזב",
    "ऋषियों को सताने वाले दुष्ट राक्षसों",
    "เป็นมนุษย์สุดประเสริฐเลิศคุณค่า",
    "யாமறிந்த மொழிகளிலே தமிழ்மொழி",
    "👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪 ☺️ 🀄 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𓀀",
    "e\u0301 o\u0308 \u1100\u1161\u11a8 \u0915\u093c \ufb01 \u212b \u2126",
    "zero\u200bwidth\u200d \u00a0nbsp \u3000wide \u2028line \u2029paragraph \ufeffbom \u0085next",
)


def probe_texts(model: ModelFiles) -> list[bytes]:
    """Texts on which engines differ where they do: scripts, white space, digits, control tokens, every byte."""
    spaces = [" " * n for n in range(1, 20)] + ["\n" * n for n in range(1, 8)] + ["\t\n \r\n  \n\n\t x", " \n a\n  b"]
    digits = ["1" * n for n in range(1, 12)] + ["٣٤٥ १२३ 12,345.67 1e-9 0x1F ½ ²", "Ⅷ〇 ㊀ 🄁1 ④", "it's 5's 'd7've"]
    digits += [f"a{gap}1{gap}2{gap}b{gap}{gap}3" for gap in ("", " ", "  ", "\n", " \n ", "\t", "\u00a0", "\u3000 ")]
    tokens = [f"a{token}b {token} {token}{token}\n{token}" for token in model.control_tokens[:256]]
    code = [
        "def f(x):\n    return {'a': [1, 2.5, None]}  # \t done\n\n\n",
        '{"k": "v\\n\\u00e9", "n": -1}\r\n',
        "a_b-c/d\\e",
    ]
    characters = ["".join(chr(point) for point in range(start, start + 64)) for start in range(0, 0x250, 64)]
    joined = [f" {one}{other} {one.upper()}" for one in _SCRIPTS for other in _SCRIPTS[:4]]
    texts = [*_SCRIPTS, *spaces, *digits, *tokens, *code, *characters, *joined, "", "a", " "]
    return [text.encode("utf-8") for text in texts]

"""Whether an answer is in another language than its prompt."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from typing import Final

from sftprep.errors import UsageError

Identify = Callable[[str], tuple[str, float]]
"""The language of a text (ISO 639-1) and how probable it is, in [0, 1]."""

_MIN_LETTERS: Final = 40
_MIN_DENSE_LETTERS: Final = 12
_SAMPLE_CHARS: Final = 300
# Shares of Han, kana and Hangul that differ this much are plain without a model; a few names in Latin are not.
_OTHER_SCRIPT: Final = 0.8
_DENSE: Final = re.compile("[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
_CODE: Final = re.compile(r"```.*?(?:```|\Z)|`[^`\n]*`|https?://\S+|\$[^$\n]+\$", re.DOTALL)
_LANGUAGES: Final = (
    r"arabic chinese cantonese mandarin danish dutch english esperanto farsi persian finnish french gaelic german "
    "greek hebrew hindi hungarian icelandic indonesian irish italian japanese korean latin malay norwegian polish "
    "portuguese romanian russian sanskrit spanish swahili swedish tagalog tamil thai turkish ukrainian urdu vietnamese "
    "welsh bengali catalan czech bulgarian"
).replace(" ", "|")
# A prompt that names a language may ask for an answer in it.
_ASKS: Final = re.compile(
    rf"translat|\b(?:{_LANGUAGES})\b|traduc|翻译|译成|译为|[中英日韩法德俄]文|[英日韩法德俄汉]语|中英",
    re.IGNORECASE,
)
# Related languages that short texts do not tell apart.
_ALIKE: Final = (
    frozenset({"no", "nb", "nn", "da", "sv"}),
    frozenset({"hr", "bs", "sr", "sl"}),
    frozenset({"id", "ms", "jv"}),
    frozenset({"es", "gl", "pt", "ca", "an"}),
    frozenset({"cs", "sk"}),
    frozenset({"zh", "ja"}),
)


@cache
def load_identifier() -> Identify:
    """The language identifier, 4 MB, read from its package.

    Raises:
        UsageError: `missing-extra` where it is not installed.
    """
    try:
        # An optional extra: only the measures of quality need it.
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError as error:
        hint = "pip install 'sftprep[quality]'"
        raise UsageError("language checks need the package py3langid", code="missing-extra", hint=hint) from error
    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)

    def identify(text: str) -> tuple[str, float]:
        language, probability = identifier.classify(text)
        return str(language), float(probability)

    return identify


def wrong_language(prompt: str, answer: str, *, identify: Identify, probability: float) -> float:
    """How probable it is that an answer is in another language than its prompt; 0 below the probability asked for.

    Not judged: texts too short to tell (40 letters, 12 of a dense script), code, prompts that name a language.
    """
    texts = [_prose(text) for text in (prompt, answer)]
    if any(text is None for text in texts) or _ASKS.search(prompt):
        return 0.0
    dense = [len(_DENSE.findall(text or "")) / max(sum(map(str.isalpha, text or "")), 1) for text in texts]
    if abs(dense[0] - dense[1]) > _OTHER_SCRIPT:
        return 1.0
    (asked, sure), (given, certain) = (identify(text or "") for text in texts)
    if asked == given or any({asked, given} <= group for group in _ALIKE):
        return 0.0
    score = min(sure, certain)
    return score if score >= probability else 0.0


def _prose(text: str) -> str | None:
    """The beginning of a text without code and addresses; None where too few letters are left."""
    plain = _CODE.sub(" ", text[: 4 * _SAMPLE_CHARS])[:_SAMPLE_CHARS]
    letters = sum(map(str.isalpha, plain))
    enough = letters >= _MIN_LETTERS or len(_DENSE.findall(plain)) >= _MIN_DENSE_LETTERS
    return plain if enough and letters > 0.75 * len(plain.replace(" ", "")) else None

"""How far an answer is supported by a context that its prompt gives: its content words, numbers and names.

An answer that brings numbers and names which the context lacks teaches a model to invent them. Only prompts that
plainly give a context are judged: a tool's result, words such as "based on the passage", or a text to rewrite. Words
and names are compared in scripts with letters from A to Z; of other contexts only numbers are.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

_GIVES_CONTEXT: Final = re.compile(
    r"\b(?:based|relying|using|according) (?:only |solely )?(?:on|to|upon)? ?(?:the |this |that |these )?(?:following |"
    r"given |above |provided )*(?:passage|context|text|article|document|paragraph|excerpt|information|facts|notes|"
    r"report|transcript|email|review|table|data|story)\b"
    r"|\b(?:context|passage|article|document|excerpt|transcript|paragraph|text|notes|email|report)\s*:\s"
    r"|<(?:context|document|passage|article)>|\bsummari[sz]e\b|\bTL;?DR\b|根据(?:以下|下面|上述|上面)",
    re.IGNORECASE,
)
_REWRITES: Final = re.compile(
    r"\b(?:rewrite|rephrase|paraphrase|extract|format|reformat|simplify|shorten|condense|proofread|edit|correct)\b"
    r".{0,80}?\b(?:text|passage|paragraph|sentences?|article|phrases|document|message)\b",
    re.IGNORECASE | re.DOTALL,
)
# What is to be made up, or recast as code, is not to be found in the context.
_CREATIVE: Final = re.compile(
    r"\b(?:write|create|design|compose|generate|draft|imagine|develop|invent|suggest|brainstorm)\w*\b.{0,60}?\b(?:"
    r"letters?|articles?|posts?|story|stories|poems?|songs?|e?mails?|code|scripts?|outlines?|conversations?|dialog\w*|"
    r"essays?|hooks?|titles?|blogs?|speech|recipes?|ideas|slogans?|ads?|tweets?|plans?|functions?|program)\b|\bcode\b",
    re.IGNORECASE | re.DOTALL,
)
_CODE: Final = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)
_LIST_NUMBER: Final = re.compile(r"^\s*\d{1,2}[.)]", re.MULTILINE)
_NUMBER: Final = re.compile(r"\d[\d,]*(?:\.\d+)?")
_LATIN: Final = re.compile(r"[A-Za-z\u00c0-\u024f]")
_OTHER_LETTER: Final = re.compile(r"[\u0370-\u1fff\u3040-\u9fff\uac00-\ud7af]")
# "I'm sorry, could you give me the text?" says nothing that a context would have to hold.
_APOLOGY: Final = re.compile(
    r"\A\W*(?:(?:I|we)(?: am| are|['\u2019](?:m|re)))? ?(?:so |very |really )?sorry\b", re.IGNORECASE
)
_NAME: Final = re.compile(r"(?<=[a-z,;'\u2019)] )[A-Z][a-z\u00e0-\u00ff]{2,}(?: [A-Z][a-z\u00e0-\u00ff]+)*")
_WORD: Final = re.compile(r"[a-z\u00e0-\u00ff]{4,}")
_STOP_WORD_LIST: Final = (
    "about above after again also although always another because been before being below between both could does "
    "doing down during each even every from further have having here hers herself himself however into itself just "
    "like made make many more most much must myself never only other otherwise ours over same several shall should "
    "since some such than that their theirs them themselves then there therefore these they this those through thus "
    "under until upon very were what when where whether which while whom whose will with within without would your "
    "yours yourself answer following given passage text context according based provided article"
)
_STOP_WORDS: Final = frozenset(_STOP_WORD_LIST.split())
_MIN_CONTEXT_WORDS: Final = 40
_MIN_ENTITIES: Final = 2
_MIN_CONTENT_WORDS: Final = 6


@dataclass(frozen=True, slots=True)
class Support:
    """Shares of an answer's content words, and of its numbers and names, that the context holds; in [0, 1]."""

    words: float
    num_words: int
    entities: float
    num_entities: int


def gives_context(prompt: str, *, tool_results: str) -> bool:
    """Whether a prompt gives a context that its answer should rest on."""
    if _CREATIVE.search(prompt):
        return False
    if tool_results:
        return True
    is_long = len(prompt.split()) >= _MIN_CONTEXT_WORDS
    return is_long and (_GIVES_CONTEXT.search(prompt) is not None or _REWRITES.search(prompt) is not None)


def support(answer: str, *, context: str) -> Support:
    """How far the context holds what the answer says, code and list numbers aside."""
    held = context.casefold().replace(",", "")
    prose = _LIST_NUMBER.sub(" ", _CODE.sub(" ", answer))
    numbers = _numbers(prose)
    # A name is written otherwise in another script, and means the same.
    spelt = prose if len(_LATIN.findall(context)) >= len(_OTHER_LETTER.findall(context)) else ""
    contents = {word for word in _WORD.findall(spelt.casefold()) if word not in _STOP_WORDS}
    names = set(_NAME.findall(spelt))
    named = len(numbers & _numbers(context)) + sum(_holds_name(name, held) for name in names)
    # The first five letters stand for a word's forms: "arrive" supports "arrival" and "arriving".
    spoken = sum(word[:5] in held for word in contents)
    num_entities = len(numbers) + len(names)
    return Support(spoken / max(len(contents), 1), len(contents), named / max(num_entities, 1), num_entities)


def _numbers(text: str) -> set[str]:
    """The numbers of a text, however they are written: 1,200 and 1200, 07 and 7, 2.50 and 2.5."""
    found = (number.replace(",", "").lstrip("0") for number in _NUMBER.findall(text))
    return {(number.rstrip("0").rstrip(".") if "." in number else number) or "0" for number in found}


def _holds_name(name: str, held: str) -> bool:
    """Whether a word of a name is there, or its initials: BMI for Body Mass Index."""
    parts = name.casefold().split()
    initials = "".join(part[0] for part in parts)
    return any(part in held for part in parts) or (len(parts) > 1 and initials in held)


def unsupported(answer: str, *, context: str, by_words: bool) -> float:
    """The share of an answer that its context lacks: of its numbers and names, or of its words if it names few.

    `by_words` is for contexts in sentences: what a tool returns shares few words with what is said of it. An apology
    lacks nothing.
    """
    if _APOLOGY.search(answer):
        return 0.0
    found = support(answer, context=context)
    if found.num_entities >= _MIN_ENTITIES:
        return 1 - found.entities
    return 1 - found.words if by_words and found.num_words >= _MIN_CONTENT_WORDS else 0.0

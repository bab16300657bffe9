"""What an answer says that a trained answer should not: refusals, leaked instructions, stock phrases.

Each function reads one answer and returns a score in [0, 1], 0 where it found nothing; the score ranks, so that what
is most plainly wrong is shown first. The phrases are English and Chinese.
"""

from __future__ import annotations

import re
from typing import Final

_CANNOT: Final = (
    r"(?:can(?:no|')t|can not|cannot|won't|will not|am (?:not able|unable)|'m (?:not able|unable)"
    r"|am not (?:allowed|permitted|programmed|comfortable|going)|'m not (?:allowed|permitted|comfortable|going)"
    r"|do not feel comfortable|don't feel comfortable|must decline|have to decline|would rather not|'d rather not|"
    r"(?:do not|don't) have the (?:ability|capability|capacity))"
)
_HELP: Final = (
    r"(?:help(?! but)|assist|"
    r"answer|provid|do (?:that|this|so)|comply|fulfil|support|generat|creat|writ|shar|discuss|engag|"
    r"giv|offer|suggest|tell|respond|participat|advis|access|complet|process|to say|opinion|make|"
    r"produce|continue|work|predict|diagnos|translat|determin|reserv|book|play|verify|confirm|brows|"
    r"recommend|endors|calculat|fulfill|see|view|open|read)\w*"
)
_REFUSALS: Final = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        rf"\bI(?:'m| am)? (?:so |very |really |truly )?(?:sorry|afraid)\b.{{0,60}}?\b(?:I|we) ?{_CANNOT}",
        r"\bI(?:'m| am)? (?:sorry|afraid)\b.{0,40}?\b(?:unable|not able|not possible|against my)",
        rf"\b(?:I|we) ?{_CANNOT}\b.{{0,40}}?\b{_HELP}",
        r"\bas an? (?:AI|artificial intelligence|language model|large language model).{0,60}?"
        r"\b(?:can(?:no|')t|cannot|not able|unable|do(?: not|n't) have|am not)\b",
        r"\bI (?:do not|don't) (?:think|believe) (?:I|it's|it is|that(?:'s| is)|this is) ?(?:should|can|would|want|"
        r"a good idea|appropriate|ethical|something I)",
        r"\bI(?:'m| am) (?:just |only )?(?:an? )?(?:AI|language model)\b.{0,60}?\b(?:can(?:no|')t|not able|unable)\b",
        r"\bI (?:do not|don't) want to (?:help|answer|talk|discuss|give|tell|say|share|encourage|support)",
        r"\bit (?:is|would be) (?:not|in)\s?(?:appropriate|ethical|legal)\w* (?:for me )?to\b",
        r"\bI(?:'m| am) not sure (?:if |that )?I(?:'m able| can| should)\b",
        r"\A\W*(?:actually,? |well,? )?no,? (?:but I can|I (?:won't|can(?:no|')t|don't think))",
        r"\b(?:that|this) (?:request )?(?:goes against|violates) (?:my|our)\b",
    )
)
_REFUSALS_ZH: Final = re.compile(
    r"(?:抱歉|对不起|很遗憾|不好意思).{0,20}?(?:无法|不能|没法|没有办法|不会)|作为.{0,12}?(?:人工智能|语言模型|AI).{0,20}?(?:无法|不能|没有)"
    r"|^我(?:无法|不能|没办法)(?:回答|提供|帮助|协助|完成|执行|告诉)"
)
# A refusal opens an answer; further on, the same words are part of the matter.
_OPENING_CHARS: Final = 260
_WHOLE_WORDS: Final = 60

_LEAKS: Final = tuple(
    re.compile(pattern, re.IGNORECASE | re.MULTILINE)
    for pattern in (
        r"<\|(?:im_start|im_end|endoftext|eot_id|start_header_id|user|assistant|system)\|>|\[/?INST\]|<</?SYS>>",
        r"^\s*#{2,4} ?(?:instructions?|inputs?|response|output|human|assistant|user|system|question)\s*:",
        r"\b(?:my|the|your) system (?:prompt|message|instructions?)\b.{0,30}?\b(?:is|says?|tells?|reads|states)\b",
        r"\b(?:I (?:was|am|have been) (?:instructed|told|prompted) to|my instructions (?:are|say|tell|were))\b",
        r"\bas (?:per |instructed|requested) ?(?:by |in |the |your )?(?:the |your )?(?:system |original |above )?"
        r"(?:prompt|instructions?)\b",
        r"^\s*you are an? (?:helpful|AI|expert|large|friendly|knowledgeable)\b.{0,40}?\b(?:assistant|model|bot)\b",
        r"\b(?:the user (?:wants me|asked me|asks me|is asking|has asked|requested) (?:to|for|about|whether))\b",
        r"^\s*(?:指令|系统提示)\s*[:：]",
    )
)
_CODE: Final = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)
_ROLE_LINE: Final = re.compile(
    r"^\s*(?:human|user|assistant|AI|system|instruction|用户|助手)\s*[:：]|[.!?]\s+(?:Human|Assistant|User):",
    re.I | re.M,
)
_DIALOGUE: Final = re.compile(
    r"\b(?:conversation|dialog|chat|transcript|script|interview|play|scene|screenplay|role)|^\s*(?:user|human)\s*:|对话|剧本",
    re.I | re.M,
)

BOILERPLATE: Final = {
    "as an AI": r"\bas an? (?:AI|artificial intelligence|(?:large )?language model)\b",
    "I hope this helps": r"\bI hope (?:this|that|it) helps\b|希望.{0,10}?(?:帮助|有用)",
    "let me know if": r"\b(?:please )?let me know if\b|\bfeel free to\b|如果您?.{0,12}?(?:请随时|随时告诉)",
    "is there anything else": r"\b(?:is there )?anything else (?:I can|you|that)\b",
    "certainly, of course, sure": r"^(?:certainly|of course|sure|absolutely|definitely)\b[!,.]|^当然",
    "great question": r"\b(?:great|good|excellent|interesting|wonderful) question\b|问得好",
    "happy to help": r"\b(?:I'd be|I would be|I'm|happy|glad|delighted) (?:happy|glad|delighted|to) "
    r"(?:to )?(?:help|assist)\b",
    "it is important to": r"\bit(?:'s| is) (?:also )?(?:important|worth|crucial|essential) to "
    r"(?:note|remember|not|mention)\w*\b",
    "in conclusion, overall": r"^(?:in conclusion|overall|in summary|to summarize|ultimately)\b"
    r"|^(?:总之|综上所述|总的来说)",
    "consult a professional": r"\b(?:consult|speak (?:to|with)|seek (?:advice|help) from|contact) (?:with )?(?:an? )?"
    r"(?:\w+ )?(?:professional|doctor|lawyer|physician|expert|therapist)\b",
    "thank you for": r"^(?:thank you|thanks) for (?:your|asking|sharing|reaching|the)\b|感谢您的",
    "I understand": r"^I (?:completely |totally |fully )?understand (?:that |your |how )|我理解",
    "here is, here are": r"^(?:here is|here are|here's|below is|below are|以下是|下面是)",
}
"""Stock phrases of assistants: name → pattern, at the start of a line where it begins with ^."""

_BOILERPLATE: Final = {name: re.compile(p, re.IGNORECASE | re.MULTILINE) for name, p in BOILERPLATE.items()}


def refusal(text: str, *, num_words: int) -> float:
    """How much of the answer is a refusal: 1 where it is short and begins with one."""
    opening = text[:_OPENING_CHARS].replace("\u2019", "'")
    starts = [found.start() for pattern in (*_REFUSALS, _REFUSALS_ZH) if (found := pattern.search(opening))]
    if not starts:
        return 0.0
    late = min(starts) / _OPENING_CHARS
    return (1 - late / 2) * min(1.0, _WHOLE_WORDS / max(num_words, 1))


def leaked_instructions(text: str, *, prompt: str) -> float:
    """Whether an answer shows role markers, prompt markers, or talks of its instructions; 1 at the first character.

    Lines such as "User:" are what a prompt for a dialogue asks for, so they count only without one.
    """
    plain = _CODE.sub("\n", text).replace("\u2019", "'")
    patterns = _LEAKS if _DIALOGUE.search(prompt) else (*_LEAKS, _ROLE_LINE)
    found = [match.start() for pattern in patterns if (match := pattern.search(plain))]
    return 1 - min(found) / (len(text) + 1) / 2 if found else 0.0


def stock_phrases(text: str) -> list[str]:
    """Names of the stock phrases that an answer uses."""
    plain = text.replace("\u2019", "'")
    return [name for name, pattern in _BOILERPLATE.items() if pattern.search(plain)]

"""The fields of a conversation that a plan is made of, and the questions that they must answer, asked at little cost.

A question is asked of all its fields in one loop, and none is asked whose answer the shape of the conversation gives.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Final, NamedTuple

from sftprep.data import Conversation
from sftprep.templates.shape import SAYING, value_at
from sftprep.templates.symbols import Field, Guard, Op, answer, write_json

_TEXT: Final = (("content",), ("content", 0, "text"))
"""Where a template finds the text of a message that is a role and a text."""
_LOOKS: Final = frozenset({"__contains__", "startswith", "begins"})
"""Questions that are answered with no where a character of what they look for is not there."""


class Asked(NamedTuple):
    """A question and the answer that it must have."""

    question: str
    args: tuple[Any, ...]
    said: Any

    @property
    def sign(self) -> str:
        """A character without which a text that says something gives the answer for sure; none where there is none.

        Few texts hold it where it is no letter, and it is looked for in a tenth of the time that a word takes.
        """
        word = self.args[0] if self.question in _LOOKS and self.said is False and len(self.args) == 1 else ""
        if not isinstance(word, str):
            return ""
        signs = (sign for sign in word if not sign.isalnum() and not sign.isspace())
        return word[:1] if self.question == "begins" else next(signs, word[:1])


class Signed(NamedTuple):
    """Questions that need be asked only of texts in which the sign is, or which say nothing, by the field's number."""

    sign: str
    asked: tuple[tuple[int, Asked], ...]

    def agree(self, texts: Sequence[str]) -> bool:
        """Whether each question has its answer."""
        sign = self.sign
        for number, (question, args, said) in self.asked:
            text = texts[number]
            if (sign in text or not text) and answer(text, question, args) != said:
                return False
        return True


class Columns(NamedTuple):
    """Fields that are texts of messages: `pick` takes them out of the texts of all messages, in order.

    `changed` are the fields to which something is done: the number, and what is done.
    """

    pick: Callable[[Sequence[str]], Sequence[str]]
    changed: tuple[tuple[int, tuple[Op, ...]], ...]


@dataclass(frozen=True, slots=True)
class Guarded:
    """The questions that the template asked of a conversation's texts."""

    fields: tuple[Field, ...]
    """Those that are only asked come last."""
    asked: tuple[Signed, ...]
    columns: Columns | None
    """None where a field is anything but the text of a message."""

    @classmethod
    def of(cls, written: Sequence[Field], guards: Mapping[Guard, Any]) -> Guarded:
        """Of the fields that are written, and the answers to questions about these and others."""
        numbers = {field: number for number, field in enumerate(written)}
        signs: dict[str, list[tuple[int, Asked]]] = {}
        for guard, said in guards.items():
            if not _is_of_shape(guard, said):
                one = Asked(guard.question, guard.args, said)
                signs.setdefault(one.sign, []).append((numbers.setdefault(guard.field, len(numbers)), one))
        asked = [Signed(sign, tuple(own)) for sign, own in signs.items()]
        return cls(tuple(numbers), tuple(asked), _columns(tuple(numbers)))

    def texts(self, conversation: Conversation) -> Sequence[str] | None:
        """The fields' texts; None where the conversation answers otherwise."""
        return self._answering([text_of(field, conversation) for field in self.fields])

    def of_texts(self, texts: Sequence[str]) -> Sequence[str] | None:
        """The same of the texts of all messages; None also where that is not all that is asked for."""
        if self.columns is None:
            return None
        pick, changed = self.columns
        found = pick(texts)
        if changed:
            found = list(found)
            for number, ops in changed:
                found[number] = _done(found[number], ops)
        return self._answering(found)

    def _answering(self, texts: Sequence[str]) -> Sequence[str] | None:
        for one in self.asked:
            if not one.agree(texts):
                return None
        return texts


def _is_of_shape(guard: Guard, said: Any) -> bool:
    """Whether any conversation of the shape gives this answer: that a text, as it is there, says something.

    JSON is never white space. A text of a message that says something does so without white space at its edges, and
    of all texts of messages that is part of the shape.
    """
    if guard.question != "shape" or said != SAYING:
        return False
    return guard.field.message >= 0 or any(name == "json" for name, _ in guard.field.ops)


def _columns(fields: Sequence[Field]) -> Columns | None:
    if any(field.message < 0 or field.keys not in _TEXT for field in fields):
        return None
    changed = tuple((number, field.ops) for number, field in enumerate(fields) if field.ops)
    messages = [field.message for field in fields]
    if messages == list(range(len(messages))):
        size = len(messages)
        return Columns(lambda texts: texts if len(texts) == size else texts[:size], changed)
    only = messages[0]
    return Columns(itemgetter(*messages) if len(messages) > 1 else lambda texts: (texts[only],), changed)


def text_of(field: Field, conversation: Conversation) -> str:
    """The text that a field is in a conversation, whose messages are in the form that the template wants."""
    return text_in(field, conversation.messages[field.message] if field.message >= 0 else conversation.tools)


def text_in(field: Field, value: Any) -> str:
    """The same, where `value` is the message that the field is of, or the tools."""
    message, keys, ops = field
    return _done(value_at(value, keys if message >= 0 else keys[1:]), ops)


def _done(value: Any, ops: Sequence[Op]) -> str:
    for name, argument in ops:
        if name == "lstrip":
            value = value.lstrip(argument)
        else:
            value = write_json(value, argument) if name == "json" else getattr(value, name)(argument)
    return str(value)

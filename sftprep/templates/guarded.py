"""The fields of a conversation that a plan is made of, and the questions that they must answer, asked at little cost.

A question is asked of all its fields in one loop, and none is asked whose answer the shape of the conversation gives.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import itemgetter, methodcaller
from typing import Any, Final, NamedTuple

from sftprep.data import Conversation
from sftprep.templates.shape import SAYING, value_at
from sftprep.templates.symbols import Field, Guard, Op, answer, write_json

_TEXT: Final = (("content",), ("content", 0, "text"))
"""Where a template finds the text of a message that is a role and a text."""
_LOOKS: Final = frozenset({"__contains__", "startswith", "begins"})
"""Questions that are answered with no where a character of what they look for is not there."""


class Asked(NamedTuple):
    """A question, the answer that it must have, and what asks it of a text."""

    question: str
    args: tuple[Any, ...]
    said: Any
    ask: Callable[[str], Any]

    @classmethod
    def of(cls, guard: Guard, said: Any) -> Asked:
        """A guard's."""
        return cls(guard.question, guard.args, said, _asking(guard.question, guard.args))

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


def _asking(question: str, args: tuple[Any, ...]) -> Callable[[str], Any]:
    """What gives the answers of `answer`, for one question in a third of the time."""
    if question == "begins":
        (word,) = args
        return lambda text: text.startswith(word) or word.startswith(text)
    if question == "__contains__" and len(args) == 1 and isinstance(args[0], str):
        (word,) = args
        return lambda text: word in text
    return partial(answer, question=question, args=args) if question == "shape" else methodcaller(question, *args)


class Signed(NamedTuple):
    """Questions that need be asked only of texts in which the sign is, or which say nothing, by the field's number."""

    sign: str
    asked: tuple[tuple[int, tuple[Asked, ...]], ...]

    def agree(self, texts: Sequence[str]) -> bool:
        """Whether each question has its answer."""
        sign = self.sign
        for number, asked in self.asked:
            text = texts[number]
            if (sign in text or not text) and not _agrees(text, asked):
                return False
        return True


def _agrees(text: str, asked: Sequence[Asked]) -> bool:
    # A generator in `all` would cost as much as the question.
    for _, _, said, ask in asked:
        if ask(text) != said:
            break
    else:
        return True
    return False


class Columns(NamedTuple):
    """Fields that are texts of messages: `pick` takes them out of the texts of all messages, in order.

    `changed` are the fields to which something is done: the number, and what does it.
    """

    pick: Callable[[Sequence[Any]], Sequence[Any]]
    changed: tuple[tuple[int, Callable[[str], str]], ...]


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
        signs: dict[str, dict[int, list[Asked]]] = {}
        for guard, said in guards.items():
            if not _is_of_shape(guard, said):
                one = Asked.of(guard, said)
                of_field = signs.setdefault(one.sign, {})
                of_field.setdefault(numbers.setdefault(guard.field, len(numbers)), []).append(one)
        asked = [
            Signed(sign, tuple((number, tuple(own)) for number, own in of_fields.items()))
            for sign, of_fields in signs.items()
        ]
        return cls(tuple(numbers), tuple(asked), _columns(tuple(numbers)))

    def texts(self, conversation: Conversation) -> Sequence[str] | None:
        """The fields' texts; None where the conversation answers otherwise."""
        return self._answering([text_of(field, conversation) for field in self.fields])

    def of_chat(self, texts: Sequence[str], encoded: Sequence[bytes]) -> Sequence[bytes] | None:
        """The same in UTF-8, of the texts of all messages; None also where that is not all that is asked for.

        `encoded` are the texts in UTF-8: what is taken as it is need not be encoded again.
        """
        if self.columns is None:
            return None
        pick, changed = self.columns
        if changed:
            found, pieces = list(pick(texts)), list(pick(encoded))
            for number, change in changed:
                text = change(found[number])
                if text is not found[number]:
                    found[number], pieces[number] = text, text.encode()
            return pieces if self._answering(found) is not None else None
        return pick(encoded) if not self.asked or self._answering(pick(texts)) is not None else None

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
    changed = tuple((number, _change(field.ops)) for number, field in enumerate(fields) if field.ops)
    messages = [field.message for field in fields]
    if messages == list(range(len(messages))):
        size = len(messages)
        return Columns(lambda texts: texts if len(texts) == size else texts[:size], changed)
    only = messages[0]
    return Columns(itemgetter(*messages) if len(messages) > 1 else lambda texts: (texts[only],), changed)


def _change(ops: tuple[Op, ...]) -> Callable[[str], str]:
    """What does something to a text."""
    if len(ops) == 1 and ops[0][0] != "json":
        return methodcaller(*ops[0])
    return partial(_done, ops=ops)


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

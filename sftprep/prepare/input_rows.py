"""The rows of a chunk that are taken: plain chats as columns, and each as a row where one is asked for."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import overload

from sftprep.data import Conversation, RowAddress
from sftprep.prepare.chunk import InputRow
from sftprep.records.plain_lines import PlainChat, plain_conversation


@dataclass(slots=True)
class InputRows(Sequence[InputRow]):
    """Rows of a file, each with its source's number, its line, how often it is taken, and its chat where it is plain.

    A row that is anything else or more, be it metadata, is in `others`, by its place.
    """

    name: str = ""
    sources: list[int] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    times: list[int] = field(default_factory=list)
    chats: list[PlainChat | None] = field(default_factory=list)
    others: dict[int, InputRow | Callable[[], InputRow]] = field(default_factory=dict)
    """As it is, or what reads it: of most rows that are a chat and metadata nobody asks for more than the chat."""

    @classmethod
    def of(cls, rows: Iterable[InputRow]) -> InputRows:
        """The rows that are taken, none of them as a chat."""
        made = cls()
        for row in rows:
            made.add(row)
        return made

    def add(self, row: InputRow) -> None:
        """Add a row, unless it is not taken."""
        if row.times:
            self.extend(row.source, (row.address.line,), (row.times,), (None,))
            self.set(len(self.lines) - 1, row)

    def extend(
        self, source: int, lines: Sequence[int], times: Sequence[int], chats: Sequence[PlainChat | None]
    ) -> list[int]:
        """Add rows, those that are not taken excepted; the place of each. Those that are no chats have to be set."""
        places = list(itertools.accumulate(map(bool, times), initial=len(self.lines)))
        self.lines.extend(itertools.compress(lines, times))
        self.chats.extend(itertools.compress(chats, times))
        self.times.extend(filter(None, times))
        self.sources.extend([source] * (places.pop() - len(self.sources)))
        return places

    def set(self, place: int, row: InputRow) -> None:
        """Make a row that was read in full the one at a place."""
        self.others[place] = row
        self.chats[place] = None if row.conversation is None else plain_conversation(row.conversation)

    def set_chat(self, place: int, chat: PlainChat, *, read: Callable[[], InputRow]) -> None:
        """Make a row that is a chat and more, which `read` reads in full, the one at a place."""
        self.others[place] = read
        self.chats[place] = chat

    def __len__(self) -> int:
        return len(self.lines)

    @overload
    def __getitem__(self, number: int) -> InputRow: ...

    @overload
    def __getitem__(self, number: slice) -> list[InputRow]: ...

    def __getitem__(self, number: int | slice) -> InputRow | list[InputRow]:
        if isinstance(number, slice):
            return [self[place] for place in range(*number.indices(len(self)))]
        chat = self.chats[number]
        if chat is None or number in self.others:
            row = self.others[number]
            return row if isinstance(row, InputRow) else row()
        address = RowAddress(self.name, self.lines[number])
        conversation = Conversation(address, chat.messages(), [1.0] * len(chat.texts))
        return InputRow(self.sources[number], self.times[number], address, conversation, ())

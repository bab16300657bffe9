"""What a template does in the order of its text: a loop over the messages, and an ending that none of them decides.

Where nothing that the loop has read so far is of a later message, what it has written so far is what it writes for any
conversation that begins so: one render gives the texts of all beginnings. Where the ending (the generation prompt)
reads nothing but arguments, it is the same behind each of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, SupportsIndex

from jinja2 import nodes

from sftprep.templates.codegen import names_of
from sftprep.templates.template import GENERATION_PROMPT

_CONVERSATION: Final = frozenset({"messages", "tools", "documents"})
_PLAIN: Final = (
    *(nodes.If, nodes.Output, nodes.TemplateData, nodes.Const, nodes.Name, nodes.Test, nodes.Compare, nodes.Operand),
    *(nodes.And, nodes.Or, nodes.Not, nodes.CondExpr),
)
_SETS: Final = (nodes.Assign, nodes.AssignBlock)
_NUMBERS: Final = frozenset({"index", "index0"})
_FOLLOWED: Final = _NUMBERS | {"first", "last"}
"""What a pass may ask of the loop: its number, whether it is the first, whether another message comes (which reads)."""
_STATEFUL: Final = frozenset({"cycler", "joiner"})
_USED_UP: Final = frozenset(
    {"map", "select", "selectattr", "reject", "rejectattr", "batch", "slice", "reverse", "items"}
)
"""Filters whose result can be walked through once."""
_BEYOND: Final = (nodes.Extends, nodes.Include, nodes.Import, nodes.FromImport, nodes.Block)


@dataclass(frozen=True, slots=True)
class Layout:
    """The names that the template reads before its ending, and in it."""

    before: frozenset[str]
    ending: frozenset[str]
    repeats: bool
    """Whether a pass of the loop is decided by what it reads of messages, and by what the template did before it."""
    by_number: bool
    """Whether passes ask for their number."""


class Reads:
    """The last message that anything was read of, and all of which something was `seen` since the last mark."""

    def __init__(self) -> None:
        self.last = -1
        self.seen: set[int] = set()

    def at(self, number: int) -> None:
        """A message is read, or that there is one."""
        self.last = max(self.last, number)
        self.seen.add(number)

    def all(self) -> None:
        """Something is read that the last message, or their number, decides."""
        self.last = 1 << 62


class WatchedMessages(list[Any]):
    """Messages that note what is read of them; `first` is the number of the first one."""

    def __init__(self, items: Sequence[Any], reads: Reads, first: int = 0) -> None:
        super().__init__(items)
        self.reads = reads
        self.first = first

    def __getitem__(self, key: SupportsIndex | slice) -> Any:
        if isinstance(key, slice):
            if key.stop is None and key.step in (None, 1) and (key.start or 0) >= 0:
                return WatchedMessages(list.__getitem__(self, key), self.reads, self.first + (key.start or 0))
            self.reads.all()
        elif 0 <= int(key) < list.__len__(self):
            self.reads.at(self.first + int(key))
        else:
            self.reads.all()
        return list.__getitem__(self, key)

    def __iter__(self) -> Iterator[Any]:
        for number, item in enumerate(list.__iter__(self)):
            self.reads.at(self.first + number)
            yield item
        self.reads.all()

    def __bool__(self) -> bool:
        is_empty = not list.__len__(self)
        self.reads.all() if is_empty else self.reads.at(self.first)
        return not is_empty


def _reads_all(name: str) -> None:
    """Let a method of `list` note that it reads everything."""
    plain = getattr(list, name)

    def method(self: WatchedMessages, *args: Any) -> Any:
        self.reads.all()
        return plain(self, *args)

    method.__name__ = name
    setattr(WatchedMessages, name, method)


for _name in ("__len__", "__contains__", "__reversed__", "__add__", "__mul__", "__rmul__", "__eq__", "__ne__"):
    _reads_all(_name)
for _name in ("__lt__", "__le__", "__gt__", "__ge__", "__repr__", "index", "count", "copy"):
    _reads_all(_name)


def marked(tree: nodes.Template) -> Layout | None:
    """Put marks behind each pass of the last loop and before the ending, in place; None where there is no such ending.

    The tree is one in which loops are stamped: one statement stands behind each.
    """
    if any(True for _ in tree.find_all(_BEYOND)):
        return None
    stored = {name.name for name in tree.find_all(nodes.Name) if name.ctx != "load"}
    at = len(tree.body)
    while at and _is_plain(tree.body[at - 1], stored):
        at -= 1
    loop = tree.body[at - 2] if at > 1 else None
    if not isinstance(loop, nodes.For) or loop.recursive or loop.else_:
        return None
    before = frozenset(name.name for node in tree.body[:at] for name in node.find_all(nodes.Name))
    ending = frozenset(name.name for node in tree.body[at:] for name in node.find_all(nodes.Name))
    if GENERATION_PROMPT in before:
        return None
    asks = {node.attr for node in tree.find_all(nodes.Getattr) if node.attr in _NUMBERS}
    layout = Layout(before, ending, _repeats(tree, loop, tree.body[: at - 2]), bool(asks))
    loop.body.append(_mark(loop, names_of(loop.target)))
    tree.body.insert(at, _mark(loop, []))
    return layout


def _repeats(tree: nodes.Template, loop: nodes.For, before: Sequence[nodes.Node]) -> bool:
    """Whether nothing is handed from one pass to the next: no namespace, nothing that is used up, no item before."""
    if any(True for _ in tree.find_all(nodes.NSRef)) or not isinstance(loop.target, nodes.Name):
        return False
    followed = {id(node.node) for node in tree.find_all(nodes.Getattr) if node.attr in _FOLLOWED}
    names = list(tree.find_all(nodes.Name))
    is_followed = all(id(name) in followed for name in names if name.name == "loop")
    set_before = [node for statement in before for node in (statement, *statement.find_all(_SETS))]
    used_up = [
        part
        for node in set_before
        if isinstance(node, _SETS)
        for part in node.find_all(nodes.Filter)
        if part.name in _USED_UP
    ]
    return is_followed and not used_up and {name.name for name in names}.isdisjoint(_STATEFUL)


def _is_plain(node: nodes.Node, stored: set[str]) -> bool:
    """Whether a statement reads arguments alone: no message, nothing that the template has set, no call."""
    inside = [node, *node.find_all(nodes.Node)]
    names = {child.name for child in inside if isinstance(child, nodes.Name)}
    return all(isinstance(child, _PLAIN) for child in inside) and names.isdisjoint(_CONVERSATION | stored)


def _mark(at: nodes.Node, names: list[str]) -> nodes.Output:
    arguments: list[nodes.Expr] = [nodes.Name(name, "load") for name in names]
    call = nodes.Call(nodes.EnvironmentAttribute("mark"), arguments, [], None, None)
    output = nodes.Output([call])
    output.set_lineno(at.lineno, override=True)
    return output

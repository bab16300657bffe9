"""The consoles that reports are printed to: on any terminal, what is printed is what was meant."""

from __future__ import annotations

import sys
from io import TextIOWrapper

from rich.console import Console


def terminal_console(*, stderr: bool = False, markup: bool = False) -> Console:
    """A console on stdout or stderr that survives any encoding: what it cannot show is escaped.

    Nothing is coloured for its looks, and no name of an emoji becomes one: `chats.jsonl:100:` is an address.
    """
    stream = sys.stderr if stderr else sys.stdout
    if isinstance(stream, TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")
    return Console(stderr=stderr, highlight=False, markup=markup, emoji=False)

"""Print one of the README's two commands: the first code block below the heading that names it.

python .ci/readme_command.py tests
"""

from __future__ import annotations

import sys
from itertools import dropwhile, takewhile
from pathlib import Path

README = Path(__file__).resolve().parent.parent / "README.md"


def command(word: str) -> str:
    """The text of the first code block below the first heading that holds the word."""
    lines = iter(README.read_text(encoding="utf-8").splitlines())
    if not any(line.startswith("#") and word in line.lower().split() for line in lines):
        sys.exit(f"README.md has no heading with {word!r}")
    block = list(takewhile(lambda line: line != "```", dropwhile(lambda line: line != "```sh", lines)))
    if len(block) < 2:
        sys.exit(f"README.md has no code block below the heading with {word!r}")
    return "\n".join(block[1:])


if __name__ == "__main__":
    print(command(sys.argv[1]))

"""Print one of the README's two commands: the first code block below the heading that names it.

python .ci/readme_command.py tests
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

README = Path(__file__).resolve().parent.parent / "README.md"


def command(word: str) -> str:
    """The code block's text below the first heading that holds the word."""
    text = README.read_text(encoding="utf-8")
    found = re.search(rf"^#+ [^\n]*\b{re.escape(word)}\b[^\n]*\n(?:(?!^#).*\n)*?```sh\n(.*?)```", text, re.M | re.S)
    if not found:
        sys.exit(f"README.md has no heading with {word!r} and a code block below it")
    return found[1].strip()


if __name__ == "__main__":
    print(command(sys.argv[1]))

"""`python -m sftprep` and the `sftprep` command."""

from __future__ import annotations

import sys
from typing import Final

from sftprep.cli.interrupt import keep_interrupts

EXIT_INTERRUPTED: Final = 130
"""128 + SIGINT, as shells expect of an interrupted command."""


def main() -> None:
    """Run the command line; an interrupt is told with what is worth knowing of it, and becomes its exit code."""
    try:
        keep_interrupts()
        # Imported behind that line: an interrupt while the commands are imported would be lost.
        from sftprep.cli.app import main as run

        run()
    except KeyboardInterrupt as interrupt:
        told = ["interrupted: nothing was published", *getattr(interrupt, "__notes__", ())]
        sys.stderr.write("\n  ".join(told) + "\n")
        sys.exit(EXIT_INTERRUPTED)


if __name__ == "__main__":
    main()

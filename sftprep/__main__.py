"""`python -m sftprep` and the `sftprep` command."""

from __future__ import annotations

import gc

from sftprep.cli.interrupt import end_interrupted, keep_interrupts


def main() -> None:
    """Run the command line."""
    try:
        keep_interrupts()
        # Counting references frees nearly all that a command makes: looking for cycles after every 700 objects, as
        # Python does, costs 8 % of a pack.
        gc.set_threshold(50_000, 20, 100)
        # Imported behind that line: an interrupt while the commands are imported would be lost.
        from sftprep.cli.app import main as run

        run()
    except KeyboardInterrupt as interrupt:
        end_interrupted(interrupt)


if __name__ == "__main__":
    main()

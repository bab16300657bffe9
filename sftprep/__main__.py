"""`python -m sftprep` and the `sftprep` command."""

from __future__ import annotations

from sftprep.cli.interrupt import end_interrupted, keep_interrupts


def main() -> None:
    """Run the command line."""
    try:
        keep_interrupts()
        # Imported behind that line: an interrupt while the commands are imported would be lost.
        from sftprep.cli.app import main as run

        run()
    except KeyboardInterrupt as interrupt:
        end_interrupted(interrupt)


if __name__ == "__main__":
    main()

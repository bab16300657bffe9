"""`python -m sftprep` and the `sftprep` command."""

from __future__ import annotations

from sftprep.cli.app import main

__all__ = ["main"]

if __name__ == "__main__":
    main()

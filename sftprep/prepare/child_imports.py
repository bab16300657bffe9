"""What children that compile and make shards need, imported once in the process that they are forked from.

That process alone imports this module. Ctrl-C reaches it too, and is the parent's to answer.
"""

from __future__ import annotations

import gc
import signal

from sftprep.collector import uncollected

signal.signal(signal.SIGINT, signal.SIG_IGN)
with uncollected():
    from sftprep.prepare import workers

__all__ = ["workers"]
# What an import makes stays: children neither look through it for garbage nor copy it when they do.
gc.freeze()

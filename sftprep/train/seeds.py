"""The seed of what a forward pass draws: a promised function, so that a run resumes in the same bits anywhere."""

from __future__ import annotations

import hashlib
import struct


def dropout_seed(seed: int, *, step: int, slot: int) -> int:
    """The seed of one forward pass, in [0, 2**63): the run's seed, the step from 0, and the batch among all processes.

    The first eight bytes of a SHA-256, because `hash` of numbers is no promise of Python's.
    """
    digest = hashlib.sha256(struct.pack("<QQQ", seed, step, slot)).digest()
    return int.from_bytes(digest[:8], "little") >> 1

"""What importing transformers need not do for training: a good half second of the start of every run."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

_IDLE: Final = ("scipy", "sklearn", "boto3")
"""What transformers and accelerate import wherever it is installed: to detect objects in pictures, to draft tokens for
another model, to ask about a cloud."""
_LISTING: Final = "create_import_structure_from_path"


@contextmanager
def without_detours() -> Iterator[None]:
    """Inside, transformers is imported without packages that training has no use for, and lists its models once.

    For a command's own process: afterwards transformers goes on as if those packages were not installed. Whoever else
    imports them then finds them.
    """
    with _absent(), _listed_once():
        yield


@contextmanager
def _absent() -> Iterator[None]:
    """Inside, idle packages that nobody has imported cannot be found: so Python understands a module that is None."""
    absent = [name for name in _IDLE if name not in sys.modules]
    modules: dict[str, Any] = sys.modules
    modules.update(dict.fromkeys(absent))
    try:
        yield
    finally:
        for name in absent:
            modules.pop(name, None)


@contextmanager
def _listed_once() -> Iterator[None]:
    """Transformers keeps the list of its models' files under their directory's name, and asks again by another."""
    # Not before idle packages are absent: transformers notes at once what is installed.
    from transformers.utils import import_utils

    listing: Any = getattr(import_utils, _LISTING, None)
    if listing is None:
        yield
        return
    setattr(import_utils, _LISTING, lambda path: listing(_directory_of(Path(path))))
    try:
        yield
    finally:
        setattr(import_utils, _LISTING, listing)


def _directory_of(path: Path) -> Path:
    return path.parent if path.name == "__init__.py" else path

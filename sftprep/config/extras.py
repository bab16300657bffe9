"""What only some commands need and not every installation has: asked for before the work, by its extra."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

from sftprep.errors import UsageError


def require_extra(extra: str, packages: Sequence[str], *, what: str) -> None:
    """UsageError `missing-extra` where one of these packages of the extra is not installed; none is imported."""
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        hint = f"pip install 'sftprep[{extra}]'"
        raise UsageError(f"{what} needs {' and '.join(missing)}", code="missing-extra", hint=hint)

"""Who a store does not let in: told apart from a line that is down, as no other try will help."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from sftprep.errors import UsageError

_NO_CREDENTIALS: Final = frozenset({"NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError"})
"""Exceptions of botocore, which is no dependency: by their names."""


def is_refused(error: Exception) -> bool:
    """Whether the store asks for other credentials, or there are none."""
    return isinstance(error, PermissionError) or type(error).__name__ in _NO_CREDENTIALS


def no_access(place: Path, error: Exception) -> UsageError:
    """The error that says so."""
    return UsageError(
        f"the store lets nobody in with these credentials: {str(error).partition(chr(10))[0]:.200}",
        code="no-access",
        place=str(place),
        hint="for S3: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile, or a role; and the right to the bucket",
    )

"""Asking a store again where a line is down, and who it does not let in, as no other try will help there."""

from __future__ import annotations

import time
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import Any, Final, TypeVar

from sftprep.errors import SftprepError, UsageError

TRIES: Final = 5
"""How often a request is made before it is an error; the store's own client tries some more each time."""

FIRST_PAUSE_SECONDS: Final = 0.5

_NO_CREDENTIALS: Final = frozenset({"NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError"})
"""Exceptions of botocore, which is no dependency: by their names."""
_CREDENTIALS: Final = {
    "s3": "for S3: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a profile, or a role; and the right to the bucket",
    "hf": "for the Hugging Face hub: HF_TOKEN, or hf auth login; and the right to the repository",
}

T = TypeVar("T")


def is_refused(error: Exception) -> bool:
    """Whether the store asks for other credentials, or there are none."""
    is_named = isinstance(error, PermissionError) or type(error).__name__ in _NO_CREDENTIALS
    return is_named or _status(error) in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}


def is_missing(error: Exception) -> bool:
    """Whether there is no such object."""
    return isinstance(error, FileNotFoundError) or _status(error) == HTTPStatus.NOT_FOUND


def _status(error: Exception) -> object:
    # Of HTTP clients whose exceptions know no errno.
    return getattr(getattr(error, "response", None), "status_code", None)


def no_access(place: Path, error: Exception) -> UsageError:
    """The error that says so."""
    scheme = str(place).partition("://")[0]
    return UsageError(
        f"the store lets nobody in with these credentials: {said(error)}",
        code="no-access",
        place=str(place),
        hint=_CREDENTIALS.get(scheme, "give the credentials that the store's client reads, with a right to the place"),
    )


def said(error: Exception) -> str:
    """What a store's client says, on a line; its kind where it says nothing."""
    return f"{str(error).strip().partition(chr(10))[0]:.200}" or type(error).__name__


def tried(ask: Callable[[], T], *, between: Callable[[], object] = lambda: None) -> T:
    """What `ask` returns, asked again for some time; `between` is called before each other try.

    Raises the last error, or the first that no other try will mend: no such object, no right, an error of ours.
    """
    for attempt in range(TRIES):
        try:
            return ask()
        except (SftprepError, IsADirectoryError, NotImplementedError):
            raise
        except Exception as error:  # each store has exceptions of its own for a line that is down
            if attempt == TRIES - 1 or is_refused(error) or is_missing(error):
                raise
            time.sleep(FIRST_PAUSE_SECONDS * 2**attempt)
            between()
    raise AssertionError("the last try returns or raises")


def listed(store: Any, root: str) -> dict[str, int]:
    """Names and bytes of all objects whose keys begin with `root`, as the store has them now; names without it."""
    store.invalidate_cache()
    return {name.removeprefix(root): int(info["size"]) for name, info in store.find(root, detail=True).items()}

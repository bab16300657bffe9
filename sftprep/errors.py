"""Everything that sftprep raises on purpose.

    SftprepError                an error with a stable code, a place and a hint
    ├── UsageError              the call is wrong: arguments, paths, options        exit 2
    │   ├── ModelFilesError     the model directory lacks a tokenizer or a template
    │   └── OutputError         the output place cannot be used
    ├── StoppedError            a signal asked the run to stop; what it did is saved  exit 143
    └── DataError               the data is wrong, or cannot be made exact           exit 1
        ├── SourceError         a source cannot be read
        ├── TemplateError       the chat template cannot be compiled or it raised
        ├── TemplateLimitError  the chat template takes more time or memory than a conversation explains
        ├── MaskError           a row whose mask cannot be exact
        ├── ShardError          a shard set is incomplete, damaged or of another model
        └── TrainError          a run cannot go on without training something else

Every message says what happened and where; `hint` says what to do about it. Codes are kebab-case, never change
their meaning, and are what `--allow`, `--fail-on` and the reports name.
"""

from __future__ import annotations


class SftprepError(Exception):
    """An error with a stable `code`, an optional `place` (file, line, message) and a `hint`."""

    exit_code = 1

    def __init__(self, message: str, *, code: str, place: str = "", hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.code = code
        self.place = place
        self.hint = hint

    def __reduce__(self) -> tuple[object, ...]:
        # Keyword-only arguments do not survive the default pickling; workers send errors home.
        return _rebuild, (type(self), self.message, self.code, self.place, self.hint)

    def __str__(self) -> str:
        where = f"{self.place}: " if self.place else ""
        hint = f"\n  hint: {self.hint}" if self.hint else ""
        return f"{where}{self.message} [{self.code}]{hint}"


class UsageError(SftprepError):
    """The call itself is wrong; nothing was read or written."""

    exit_code = 2


class ModelFilesError(UsageError):
    """The model directory or hub id has no usable tokenizer, template or stop tokens."""


class OutputError(UsageError):
    """The output directory exists, is not empty, or cannot be written."""


class StoppedError(SftprepError):
    """A run was asked to stop by SIGTERM: the step was finished and saved."""

    exit_code = 143


class DataError(SftprepError):
    """The data is wrong, or cannot be made exact."""


class SourceError(DataError):
    """A source file is missing, empty, truncated or not what its name says."""


class TemplateError(DataError):
    """The chat template does not compile, or raised on a conversation."""


class TemplateLimitError(DataError):
    """The chat template takes more steps, time or memory than a conversation explains: no row goes through it."""


class MaskError(DataError):
    """A row whose label mask cannot be exact; the row is left out and listed."""


class ShardError(DataError):
    """A shard set is incomplete, damaged, or belongs to another model."""


class EngineDiffersError(DataError):
    """A fast tokenizer engine gave other ids than the reference; what it encoded is done again without it."""


class TrainError(DataError):
    """Training cannot go on without training something other than what was proven."""


def _rebuild(kind: type[SftprepError], message: str, code: str, place: str, hint: str) -> SftprepError:
    return kind(message, code=code, place=place, hint=hint)

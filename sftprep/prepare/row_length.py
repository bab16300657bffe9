"""What becomes of rows that are exact: most fit into a packed row, for the others there is an option, or nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sftprep.config.pack import OverLength, PackConfig
from sftprep.data import Finding, Severity
from sftprep.errors import DataError, MaskError
from sftprep.prepare.chunk import OVER_LENGTH, TURNS_LEFT_OUT, InputRow, LeftOutRow
from sftprep.prepare.compile import CompiledRow, CompileRow
from sftprep.prepare.over_length import Shortened, Shortener


class Sizes(NamedTuple):
    """Tokens, and trained tokens, of each document of a row."""

    lengths: Sequence[int]
    trained: Sequence[int]

    @classmethod
    def of(cls, row: CompiledRow) -> Sizes:
        """Of a compiled row."""
        return cls([len(d.ids) for d in row.documents], [d.num_trained for d in row.documents])


@dataclass(frozen=True, slots=True)
class Fit:
    """How long a document may be, and what shortens a longer one."""

    max_length: int | None
    shorten: Shortener | None

    @classmethod
    def of(cls, compile_row: CompileRow, config: PackConfig) -> Fit:
        """As the run wants it."""
        shortens = config.over_length in (OverLength.SPLIT_AT_TURN, OverLength.TRUNCATE_AT_TURN)
        if config.max_length is None or not shortens:
            return cls(config.max_length, None)
        return cls(config.max_length, Shortener(compile_row, max_length=config.max_length, policy=config.over_length))

    def is_too_long(self, longest: int) -> bool:
        """Whether a row's longest document is longer than that."""
        return self.max_length is not None and longest > self.max_length

    def are_too_long(self, longest: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """The same of many rows."""
        too_long: npt.NDArray[np.bool_] = longest > (
            np.iinfo(np.int64).max if self.max_length is None else self.max_length
        )
        return too_long

    def refusal(self, row: InputRow, sizes: Sizes) -> LeftOutRow:
        """A row as one that is too long."""
        return _too_long(row, sizes, self.max_length or 0)

    def fitted(self, row: InputRow, whole: CompiledRow) -> tuple[CompiledRow | None, Sequence[LeftOutRow]]:
        """What is packed of a row, if anything is, and what is left out of it."""
        sizes = Sizes.of(whole)
        if self.max_length is None or not self.is_too_long(max(sizes.lengths)):
            return whole, ()
        refused = self.refusal(row, sizes)
        if self.shorten is None or row.conversation is None:
            return None, (refused,)
        try:
            shortened = self.shorten(row.conversation, whole)
        except MaskError as error:
            return None, (_counted(left_out(row, error), sizes),)
        if not shortened.compiled.documents:
            return None, (refused,)
        return shortened.compiled, tuple(_turns_left_out(row, shortened, self.max_length))


def left_out(row: InputRow, error: DataError) -> LeftOutRow:
    """A row of which nothing is packed because of an error."""
    finding = Finding(error.code, Severity.ERROR, row.address, error.place, error.message, error.hint)
    return LeftOutRow(row.source, row.times, row.address, (finding,))


def _too_long(row: InputRow, sizes: Sizes, max_length: int) -> LeftOutRow:
    error = MaskError(
        f"the conversation has {max(sizes.lengths):,} tokens and a row holds {max_length:,}",
        code=OVER_LENGTH,
        place="/messages",
        hint="raise --max-length; --over-length split-at-turn or truncate-at-turn keeps turns, drop leaves it out",
    )
    return _counted(left_out(row, error), sizes)


def _counted(row: LeftOutRow, sizes: Sizes) -> LeftOutRow:
    """With the tokens of a row that is exact and not packed."""
    lengths = sizes.lengths
    return replace(row, num_tokens=sum(lengths), longest=max(lengths), num_trained=sum(sizes.trained))


def _turns_left_out(row: InputRow, shortened: Shortened, max_length: int) -> Iterator[LeftOutRow]:
    """The turns of a row that are not packed, one finding each; nothing where all are."""
    findings = tuple(
        Finding(
            TURNS_LEFT_OUT,
            Severity.ERROR,
            row.address,
            f"/messages/{message}",
            f"the turn is not trained: what --over-length keeps before it does not fit into {max_length:,} tokens",
            "raise --max-length",
        )
        for message in shortened.lost
    )
    if findings:
        yield LeftOutRow(
            row.source, row.times, row.address, findings, num_trained=shortened.num_trained_lost, is_partial=True
        )

"""What each trained token counts in the loss, beside the weight of its message."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from sftprep.train.stream import Row


def reweighted(row: Row, mode: str) -> Row:
    """The row with the weights of a loss mode.

    `token`: every trained token counts its weight. `sample`: divided by the trained tokens of its document, so that a
    document counts 1. `turn`: divided by those of its message in the document, so that a trained message counts 1.
    """
    if mode == "token":
        return row
    groups = np.repeat(np.arange(len(row.lengths)), row.lengths)
    if mode == "turn":
        groups = _joint(groups, row.messages)
    sizes = np.bincount(groups, weights=row.trained)[groups]
    return replace(row, weights=(row.weights / np.maximum(sizes, 1)).astype(np.float32))


def _joint(documents: npt.NDArray[np.int64], messages: npt.NDArray[np.int32]) -> npt.NDArray[np.int64]:
    """A number for each pair of document and message. int64 `[T]`."""
    _, numbers = np.unique(np.stack([documents, messages]), axis=1, return_inverse=True)
    flat: npt.NDArray[np.int64] = numbers.reshape(-1)
    return flat

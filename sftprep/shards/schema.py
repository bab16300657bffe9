"""The columns of a shard: one row a pack, flat lists and scalars only, readable by any Parquet reader."""

from __future__ import annotations

from typing import Final

import pyarrow as pa

FORMAT_VERSION: Final = 2
"""Raised whenever a column or the manifest changes its meaning."""

MANIFEST_NAME: Final = "manifest.json"
"""Written last: a directory without it is not a shard set."""

SHARD_SCHEMA: Final = pa.schema(
    [
        pa.field("input_ids", pa.list_(pa.int32()), nullable=False),
        pa.field("assistant_masks", pa.list_(pa.int8()), nullable=False),
        pa.field("seq_lengths", pa.list_(pa.int32()), nullable=False),
        pa.field("span_starts", pa.list_(pa.int32()), nullable=False),
        pa.field("span_kinds", pa.list_(pa.int8()), nullable=False),
        pa.field("span_messages", pa.list_(pa.int32()), nullable=False),
        pa.field("doc_files", pa.list_(pa.int32()), nullable=False),
        pa.field("doc_lines", pa.list_(pa.int64()), nullable=False),
        pa.field("doc_samples", pa.list_(pa.int32()), nullable=False),
        pa.field("doc_kwargs", pa.list_(pa.int32()), nullable=False),
        pa.field("num_trained", pa.int32(), nullable=False),
        pa.field("weight_sum", pa.float64(), nullable=False),
        pa.field("sum_len2", pa.int64(), nullable=False),
    ]
)
"""`assistant_masks` is 1 where the token is a target (not shifted), 0 at each document's first token.

`seq_lengths` are the documents' token counts, in order, and sum to the row's length. `span_starts` count from the
row's first token; a span reaches to the next start; no span crosses a document border. `doc_files` index the
manifest's `sources`, `doc_kwargs` its `template_kwargs`; `doc_lines` count from 1. `num_trained` is the mask's sum,
`weight_sum` the sum of the trained tokens' weights, `sum_len2` the sum of squared document lengths (attention cost).
"""

WEIGHTS_FIELD: Final = pa.field("weights", pa.list_(pa.float32()), nullable=False)
"""Per-token loss weights (0 where not trained): for the whole data set or not at all."""


def shard_schema(*, weights: bool) -> pa.Schema:
    """The columns of every shard of a set."""
    return SHARD_SCHEMA.append(WEIGHTS_FIELD) if weights else SHARD_SCHEMA

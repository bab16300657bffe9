"""The manifest of a shard set: what was packed, from what, with what, and what was left out."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from sftprep.errors import ShardError
from sftprep.shards.schema import FORMAT_VERSION


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelRecord(_Frozen):
    """The tokenizer, template and stop tokens that the shards were made with; copies lie in `model/`."""

    name: str = Field(description="The directory or hub id that --model named.")
    tokenizer_sha256: str = Field(
        description="Of the canonical vocabulary, merges, added tokens and normaliser, not of files' bytes."
    )
    template_sha256: str = Field(description="Of the chat template's UTF-8 text.")
    template: str = Field(description="The chat template's text, unmodified.")
    tool_template: str | None = Field(
        default=None, description="The text of the template for rows with tools, where the model has another one."
    )
    stop_ids: list[int] = Field(description="Token ids that end a completion, ascending.")
    stop_tokens: list[str] = Field(description="Their texts, in the same order.")
    vocab_size: int = Field(description="Ids are below this number.")
    pad_id: int = Field(description="The id that pads a row; padding is always decided by position.")


class SourceRecord(_Frozen):
    """One input file; `doc_files` of the shards index this list."""

    name: str = Field(description="The name given by --source NAME=FILE, else the path as given.")
    path: str
    sha256: str = Field(description="Of the file's bytes as stored; empty where `identity` names them.")
    identity: str = Field(default="", description="What an object store calls the bytes that were read, as its ETag.")
    num_bytes: int
    num_rows: int = Field(description="Rows in the file.")
    epochs: float = Field(description="How often each row was to be taken: the weight of --source.")
    num_taken: int = Field(description="Rows taken, counted with repetition.")
    num_documents: int = Field(description="Documents packed from it.")
    num_left_out: int = Field(description="Rows left out, counted with repetition.")

    @property
    def bytes_name(self) -> str:
        """What names the bytes that were packed: their sha256, or an object store's own name for them."""
        return self.sha256 or self.identity


class ShardRecord(_Frozen):
    """One Parquet file."""

    file: str = Field(description="Path relative to the manifest.")
    sha256: str
    num_bytes: int
    num_rows: int = Field(description="Packs (or documents, without packing).")
    num_tokens: int
    num_trained: int
    weight_sum: float


class Waste(_Frozen):
    """Share of positions that would be padding, in [0, 1]."""

    padding_to_longest: float = Field(description="One document a row, all padded to the longest document.")
    padding_to_max_length: float = Field(description="One document a row, all padded to --max-length.")
    packing: float = Field(description="Packed rows padded to --max-length.")


class Lengths(_Frozen):
    """Quantiles of a per-document token count."""

    mean: float
    p50: int
    p90: int
    p99: int
    max: int


class Counts(_Frozen):
    """Totals over all shards."""

    num_conversations: int = Field(description="Rows of which at least one document was packed, with repetition.")
    num_documents: int
    num_packs: int
    num_tokens: int
    num_trained: int
    num_turns: int = Field(description="Trained assistant turns.")
    weight_sum: float
    tokens_by_kind: dict[str, int] = Field(description="By span kind (lower-case name).")
    documents_by_class: dict[str, int] = Field(
        default_factory=dict,
        description="Trained turns by class: packed, rewritten, spliced, switched, contradicted, generation-tags.",
    )
    repeated_tokens: int = Field(
        default=0, description="History tokens that packing repeats because the template rewrites history."
    )
    remarks: dict[str, int] = Field(
        default_factory=dict,
        description="What is packed and worth knowing: `context-lost` messages that the template does not show, "
        "`border-straddled` turns with a document of their own, `control-token-split` rows, `merged` messages, "
        "`tags-…` turns by how the template's generation blocks differ.",
    )


class LeftOut(_Frozen):
    """Rows left out: all of them by address and code in `left_out.jsonl`."""

    num_rows: int
    by_code: dict[str, int]
    max_drop: str


class OverLengthRecord(_Frozen):
    """Conversations longer than `max_length`, and what that cost; each lost turn is in `left_out.jsonl`."""

    policy: str = Field(description="--over-length.")
    num_rows: int = Field(description="Rows that are exact and too long, each once.")
    num_left_out: int = Field(description="Those of which nothing is packed.")
    num_trained: int = Field(description="Trained tokens of the whole rows, with repetition.")
    num_trained_lost: int = Field(description="Those that are in no shard.")


class PartRecord(_Frozen):
    """One of several packs that a set was made of: the first, or what `--append` added."""

    fingerprint: str = Field(description="Of that pack alone.")
    versions: dict[str, str]
    num_sources: int = Field(description="Its sources stand behind those of the parts before it.")
    num_shards: int = Field(description="Its shards stand behind those of the parts before it.")


class Manifest(_Frozen):
    """`manifest.json`, written last, so that its presence means that the set is complete."""

    format_version: int = FORMAT_VERSION
    fingerprint: str = Field(description="sha256 over everything that decides the shards' bytes.")
    versions: dict[str, str] = Field(description="sftprep and the libraries that decide bytes.")
    model: ModelRecord
    config: dict[str, object] = Field(description="The resolved pack configuration.")
    packing: bool = Field(description="False: one document a row, for a padding collator.")
    max_length: int = Field(description="Tokens a row holds at most.")
    has_weights: bool = Field(description="Whether the shards have the `weights` column.")
    mask: Literal["assistant", "generation-tags"] = Field(
        description="The policy stamp of the mask: `assistant` is proven against the server's prompts, "
        "`generation-tags` is what the template's own blocks say.",
    )
    template_kwargs: list[dict[str, object]] = Field(
        description="The distinct keyword arguments that the template was given; the shards' `doc_kwargs` index them."
    )
    sources: list[SourceRecord]
    shards: list[ShardRecord]
    counts: Counts
    lengths: Lengths = Field(description="Tokens a document.")
    trained_lengths: Lengths = Field(description="Trained tokens a document.")
    waste: Waste
    left_out: LeftOut
    over_length: OverLengthRecord | None = Field(default=None, description="Absent where nothing was counted.")
    parts: list[PartRecord] = Field(default_factory=list, description="Empty where nothing was appended.")


def refuse_trained(held: Manifest, *, trained: Manifest, place: str) -> None:
    """ShardError `eval-trained` where a held-out set has a source, by its bytes, that is trained too.

    The loss of rows that were trained falls whatever the model learns, so it would hide what it was asked for.
    """
    bytes_trained = {(source.bytes_name, source.num_bytes) for source in trained.sources}
    shared = sorted({source.name for source in held.sources if (source.bytes_name, source.num_bytes) in bytes_trained})
    if shared:
        raise ShardError(
            f"the held-out set holds rows of a file that is trained: {', '.join(shared)}",
            code="eval-trained",
            place=place,
            hint="pack rows that are held out: sftprep split makes such files",
        )

"""Options of `sftprep pack`."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from sftprep.config.places import CACHE_DIR, InputPlace, LocalPath, ModelName, Place, input_of, shown

PINNED_NOW: Final = datetime(2026, 1, 1)
"""What `strftime_now` shows in a template, unless told: the same file packed on two days gives the same bytes."""


WAIVABLE: Final = ("contradicted", "double-bos", "field-lost", "field-repeated", "ill-posed", "no-terminator")
"""The mask errors that `--allow` waives: each then trains what the template shows."""


_HOST_AND_PORT: Final = r"^[^\s/]+:\d+$"


class OverLength(StrEnum):
    """What happens to a conversation that is longer than a row."""

    REFUSE = "refuse"
    """The run fails and names all of them, whatever --max-drop allows."""
    DROP = "drop"
    """It is left out and counted in --max-drop."""
    SPLIT_AT_TURN = "split-at-turn"
    """It becomes conversations that fit: each begins at a question, behind the system message, and trains new turns."""
    TRUNCATE_AT_TURN = "truncate-at-turn"
    """Whole turns are left off its end until it fits."""


class SourceSpec(BaseModel):
    """One input file, its name, and how often each of its rows is taken."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    name: str = Field(min_length=1, description="What reports call it; it also seeds which rows a fraction takes.")
    path: InputPlace
    epochs: float = Field(
        default=1.0, gt=0, allow_inf_nan=False, description="2.5: all rows twice, half of them again."
    )

    @classmethod
    def parse(cls, text: str) -> SourceSpec:
        """Read `NAME=FILE[:weight]`. ValueError where it is not that."""
        name, equals, rest = text.partition("=")
        if not (name and equals and rest):
            raise ValueError(f"not NAME=FILE[:weight]: {text!r}")
        path, colon, weight = rest.rpartition(":")
        if colon and path and _is_number(weight):
            if not (math.isfinite(float(weight)) and float(weight) > 0):
                raise ValueError(f"the weight is not a number above 0: {text!r}")
            return cls(name=name, path=input_of(path), epochs=float(weight))
        return cls(name=name, path=input_of(rest))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _source(value: object) -> object:
    return SourceSpec.parse(value) if isinstance(value, str) else value


def _text(value: object) -> object:
    return str(value) if isinstance(value, int) else value


def _count_or_share(text: str) -> str:
    if not re.fullmatch(r"\d+(?:(?:\.\d+)?%)?", text, re.ASCII) or (text[-1] == "%" and float(text[:-1]) > 100):
        raise ValueError(f"must be a count such as 25, or a percentage up to 100%, is {text!r}")
    return text


def _host_and_port(text: str) -> str:
    if not re.fullmatch(_HOST_AND_PORT, text):
        raise ValueError(f"must be HOST:PORT, is {text!r}")
    return text


def _json_object(value: object) -> object:
    """A JSON object from the command line's text; anything else is checked by its type."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error}") from error


class PackConfig(BaseModel):
    """Everything that decides a shard set. Each field's description is the help text of its option."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    files: tuple[InputPlace, ...] = Field(
        default=(),
        description="Chat files: JSONL, JSON arrays, Parquet, Arrow (also .gz or .zst), patterns, directories that "
        "`datasets` saved, URLs (s3://…, extra `remote`), or - for standard input; each row is taken once.",
    )
    sources: tuple[Annotated[SourceSpec, BeforeValidator(_source)], ...] = Field(
        default=(),
        description="NAME=FILE[:weight], repeatable: mix files; the weight is the epochs of that file, whole or "
        "fractional (2.5: every row twice, and a seeded half of them a third time); FILE may be a pattern or a URL.",
    )
    model: ModelName = Field(
        min_length=1,
        description="Model directory or Hugging Face hub id: its tokenizer, chat template and stop tokens.",
    )
    out: Place = Field(
        description="Directory of the shard set, or its URL (s3://…, extra `remote`). It appears when it is whole, or "
        "not at all; at a URL it is whole when its manifest is there."
    )

    max_length: int | None = Field(
        default=None,
        ge=1,
        lt=2**31,
        description="Tokens a row holds at most. Required with packing: nothing is ever cut, so take the context "
        "length that you will train with; the report says how many conversations other lengths would drop. "
        "With --no-packing the longest conversation decides unless this says less.",
    )
    packing: bool = Field(
        default=True, description="Put whole conversations together into rows, or write one conversation a row."
    )
    over_length: OverLength = Field(
        default=OverLength.REFUSE,
        description="Conversations longer than --max-length: `refuse` fails and names them all, `drop` leaves them out "
        "and counts them in --max-drop, `split-at-turn` trains later turns as if the conversation had begun at a later "
        "question, `truncate-at-turn` leaves whole turns off the end. Trained tokens that are lost are counted.",
    )
    num_rows: int | None = Field(
        default=None,
        ge=1,
        lt=2**31,
        description="Spread the documents over exactly so many rows; an error where they need more.",
    )
    rows_multiple_of: int = Field(
        default=1,
        ge=1,
        lt=2**31,
        description="Make the number of rows a multiple of this, such as the rows of one step.",
    )
    max_drop: Annotated[str, BeforeValidator(_text), AfterValidator(_count_or_share)] = Field(
        default="0",
        json_schema_extra={"pattern": r"^(\d+|\d+(\.\d+)?%)$"},
        description="Rows that may be left out because they cannot be exact: a count or a percentage (`25`, `1%`). "
        "Beyond it nothing is published.",
    )
    seed: int = Field(
        default=0, ge=0, lt=2**63, description="Decides the order of rows and which rows a fraction takes."
    )
    format: str | None = Field(
        default=None, description="Format of all files where detection is refused: see `sftprep validate --help`."
    )

    train_on: Literal["all", "last"] = Field(
        default="all", description="Assistant turns to train: `all`, or only the `last`."
    )
    history: Literal["expand", "last-turn", "as-rendered"] = Field(
        default="expand",
        description="Turns that the template rewrites once they are history: `expand` trains each in a sample of its "
        "own, `last-turn` trains the last turn only, `as-rendered` keeps one sample and does not train them.",
    )
    reasoning: Literal["train", "mask"] = Field(
        default="train", description="`mask` trains no `reasoning_content`, nor the tags around it."
    )
    tool_calls: Literal["train", "mask"] = Field(
        default="train",
        description="`mask` trains no tool call, nor the tags around it; a turn that only calls is context then.",
    )
    mask: Literal["contract", "generation-tags"] = Field(
        default="contract",
        description="`contract`: what the model must emit after the server's prompt, proven. `generation-tags`: the "
        "template's own generation blocks as they are, proven nothing.",
    )
    merge_consecutive: bool = Field(
        default=False, description="Make one message of assistant messages that follow each other, by a blank line."
    )
    control_tokens: Literal["error", "split", "allow"] = Field(
        default="error",
        description="Rows whose text holds a control token: `error` leaves them out, `split` encodes it as plain text, "
        "which a server does not do unless it is told to, `allow` encodes it as a control token, as a server does.",
    )
    allow: tuple[str, ...] = Field(
        default=(),
        description=f"Mask error to waive, by its code; repeatable. One of {', '.join(WAIVABLE)}.",
    )
    template_kwargs: Annotated[dict[str, Any], BeforeValidator(_json_object)] = Field(
        default_factory=dict,
        description="JSON object of template variables, such as '{\"enable_thinking\": false}'; a row's own "
        "chat_template_kwargs win.",
    )
    now: datetime = Field(
        default=PINNED_NOW, description="The date that templates with `strftime_now` show; recorded in the manifest."
    )

    shard_tokens: int | None = Field(
        default=None,
        ge=1,
        lt=2**63,
        description="Tokens after which a new shard file is begun. Default: a sixteenth of the set's, from one million "
        "to 67.",
    )
    work_dir: LocalPath = Field(
        default=CACHE_DIR / "packing",
        description="Where a set for a URL is made: about four times its bytes, until it is uploaded.",
    )
    overwrite: bool = Field(default=False, description="Replace another shard set at --out, once the new one is whole.")
    rehash: bool = Field(
        default=False,
        description="Read inputs and model again where their sizes, times and inodes say that nothing has changed "
        "since the set at --out was made; without it such a run reads nothing.",
    )
    append: bool = Field(
        default=False,
        description="Add the files to the shard set at --out as a new part; the shards that are there stay as they "
        "are. Model and options must be those that the set was packed with.",
    )
    tokenizer_engine: Literal["auto", "reference"] = Field(
        default="auto",
        description="`auto` encodes with a fast engine (extra `fast`) where it gives the ids of the reference, which "
        "is checked before and during the run; `reference` takes no other than `tokenizers`. The bytes are the same.",
    )
    plans: bool = Field(
        default=True,
        description="Render conversations of one shape by a plan that was proven of the shape; without it every row "
        "goes through the template by itself. The bytes are the same.",
    )
    workers: int | None = Field(
        default=None,
        ge=1,
        description="Processes at work at once: 1 unless this says more, with --runner ray the CPUs that the cluster "
        "has. The bytes are the same for any number.",
    )
    runner: Literal["local", "ray"] = Field(
        default="local",
        description="Who compiles: processes of this machine, or a Ray cluster (extra `ray`) whose nodes have the same "
        "versions installed; this machine reads the input and writes the shards. The bytes are the same.",
    )
    ray_address: Annotated[str, AfterValidator(_host_and_port)] | None = Field(
        default=None,
        json_schema_extra={"pattern": _HOST_AND_PORT},
        description="HOST:PORT of the cluster; without it the one that RAY_ADDRESS names or that runs on this machine, "
        "else one that is started here for this run.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if not self.files and not self.sources:
            raise ValueError("no input: name files, or --source NAME=FILE")
        if self.packing and self.max_length is None:
            raise ValueError("--max-length is required with packing: nothing is cut, so name the context length")
        if not self.packing and (self.num_rows is not None or self.rows_multiple_of > 1):
            raise ValueError("--num-rows and --rows-multiple-of need packing: without it every document has its row")
        if self.append and (self.overwrite or self.num_rows is not None):
            raise ValueError("--append keeps what is there: it goes with neither --overwrite nor --num-rows")
        unknown = [code for code in self.allow if code not in WAIVABLE]
        if unknown:
            raise ValueError(f"--allow {unknown[0]}: nothing of that name can be waived; see sftprep pack --help")
        repeated = [name for name, count in Counter(spec.name for spec in self.inputs).items() if count > 1]
        if repeated:
            raise ValueError(f"two sources have the name {repeated[0]!r}: --source NAME=FILE:2 takes a file twice")
        return self

    @model_validator(mode="after")
    def _elsewhere(self) -> Self:
        if self.ray_address is not None and self.runner != "ray":
            raise ValueError("--ray-address needs --runner ray")
        return self

    def may_drop(self, num_left_out: int, *, num_rows: int) -> bool:
        """Whether --max-drop covers so many rows of so many."""
        if self.max_drop.endswith("%"):
            return num_left_out * 100 <= float(self.max_drop[:-1]) * num_rows
        return num_left_out <= int(self.max_drop)

    @property
    def inputs(self) -> tuple[SourceSpec, ...]:
        """All inputs in order: the plain files, named by their paths, then the named sources."""
        plain = (SourceSpec(name=shown(path), path=path) for path in self.files)
        return (*plain, *self.sources)

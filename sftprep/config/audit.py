"""What `sftprep audit` is told."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Final, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from sftprep.config.places import CACHE_DIR, CACHE_GB, FilePlace, LocalPath, ModelName, Place, refuse_inside

PLAIN_GATES: Final = (
    "stop-untrained",
    "scaffold-trained",
    "other-role-trained",
    "border-trained",
    "count-mismatch",
    "has-weights",
    "parity",
)
"""Conditions without a limit: each demands that there is none of it; `parity` that every prompt is a server's."""

LIMITS: Final = ("left-out", "trained-lost")
"""Rows left out, and trained tokens lost because rows were too long: at most a count, or a share of all there were."""
_WITH_VALUES: Final = "trained-share=LOW..HIGH, left-out=COUNT|PERCENT%, trained-lost=COUNT|PERCENT%"


@dataclass(frozen=True, slots=True)
class Gate:
    """One condition of --fail-on: a share in [low, high], or a count or share of at most `high`."""

    text: str
    code: str
    low: float = 0.0
    high: float = 0.0
    is_share: bool = False

    @classmethod
    def parse(cls, text: str) -> Gate:
        """Read `CODE`, `trained-share=LOW..HIGH`, or a code of LIMITS with a limit. ValueError where it is none."""
        code, equals, limit = text.partition("=")
        if code in PLAIN_GATES and not equals:
            return cls(text, code)
        if code == "trained-share" and ".." in limit:
            low, _, high = limit.partition("..")
            return cls(text, code, *_limits(text, low or "0", high or "1", most=1), is_share=True)
        if code in LIMITS and limit.endswith("%"):
            _, highest = _limits(text, "0", limit.removesuffix("%"), most=100)
            return cls(text, code, high=highest / 100, is_share=True)
        if code in LIMITS and limit:
            return cls(text, code, *_limits(text, "0", limit, most=math.inf))
        known = ", ".join(PLAIN_GATES)
        raise ValueError(f"no gate is {text!r}: {known}, {_WITH_VALUES}")


def _limits(text: str, low: str, high: str, *, most: float) -> tuple[float, float]:
    """The limits of a gate. ValueError where they are no numbers (nor is `nan`), or beyond what there can be of it."""
    try:
        least, highest = float(low), float(high)
    except ValueError as error:
        raise ValueError(f"the limit is no number: {text!r}") from error
    if not 0 <= least <= highest <= most:
        raise ValueError(f"nothing can lie within {text!r}: " + ("0 or more" if most == math.inf else f"0 to {most:g}"))
    return least, highest


def _gates(texts: tuple[str, ...]) -> tuple[str, ...]:
    for text in texts:
        Gate.parse(text)
    return texts


class AuditConfig(BaseModel):
    """The options of an audit; each description is the option's help."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    directory: Place = Field(
        description="The shard set that `sftprep pack` wrote, or its URL (s3://…, extra `remote`)."
    )
    sample: int = Field(default=1, ge=0, description="Show the tokens of this many rows, drawn by the seed.")
    row: int | None = Field(default=None, ge=0, description="Show the tokens of this row instead of drawn ones.")
    where: str | None = Field(
        default=None,
        description="Draw the rows to show from those with a document for which this SQL expression holds, such as "
        "\"length > 1000 AND file LIKE '%math%'\". Names: row, document, file, line, length and trained (tokens), "
        "share (trained / length), density (how full the row is, 0 to 1), code (the row's findings).",
    )
    seed: int = Field(default=0, ge=0, description="Draws the rows to show.")
    ids: bool = Field(default=False, description="Show each token's id behind its text.")
    json_file: FilePlace | None = Field(default=None, description="Write the report as JSON to this file or URL.")
    html: FilePlace | None = Field(default=None, description="Write one self-contained page with the report and rows.")
    html_rows: int = Field(
        default=20, ge=0, description="Rows that the page shows: the most notable, and as many drawn by the seed."
    )
    checksums: bool = Field(default=True, description="Compare every shard's sha256 with the manifest's.")
    allow: tuple[str, ...] = Field(
        default=(), description="Report findings of this code without failing on them; repeatable."
    )
    fail_on: Annotated[tuple[str, ...], AfterValidator(_gates)] = Field(
        default=(),
        description="Exit with 1 unless this holds, whatever was allowed; repeatable. One of "
        + ", ".join(PLAIN_GATES)
        + f", {_WITH_VALUES}.",
    )

    prove: bool = Field(
        default=False,
        description="Read the sources again and compare the tokens before every trained turn with those that a server "
        "would send. Writes the certificate parity.json into the set; exit code 1 unless all are proven.",
    )
    model: ModelName | None = Field(
        default=None, description="Model directory or hub id of the server for --prove; without it, the set's own."
    )

    cache_dir: LocalPath = Field(default=CACHE_DIR, description="Where shards of a URL are copied.")
    cache_gb: float = Field(default=CACHE_GB, gt=0, description="Gigabytes that the copies may take.")

    diff: Place | None = Field(
        default=None,
        description="Compare with another shard set, or with a dataset that another trainer prepared (a directory that "
        "`datasets` saved, or Parquet, with input_ids and labels or a mask; or the URL of one), document by document; "
        "nothing is audited.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if "parity" in self.fail_on and not self.prove:
            raise ValueError("--fail-on parity needs --prove")
        if self.model is not None and not self.prove:
            raise ValueError("--model needs --prove")
        if self.diff is not None and (self.prove or self.html is not None or self.fail_on):
            raise ValueError("--diff compares and nothing else: it takes --json, and not --html, --prove or --fail-on")
        if self.row is not None and self.where is not None:
            raise ValueError("--row and --where exclude each other")
        outputs = {"--json": self.json_file, "--html": self.html}
        refuse_inside(outputs, {"DIR_OR_URL": self.directory, "--diff": self.diff})
        return self

    @property
    def gates(self) -> tuple[Gate, ...]:
        """The conditions of --fail-on."""
        return tuple(Gate.parse(text) for text in self.fail_on)

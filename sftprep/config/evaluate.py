"""Options of `sftprep evaluate`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from sftprep.config.places import CACHE_DIR, CACHE_GB, FilePlace, InputPlace, LocalPath, ModelName, Place, refuse_inside

GateKind = Literal[
    "pass-rate",
    "win-rate",
    "stops",
    "repetition",
    "regression",
    "improvement",
    "not-worse",
    "nll",
    "nll-regression",
    "contamination",
    "parity",
    "provenance",
    "harness",
    "harness-regression",
]
_AT_LEAST: Final = frozenset({"pass-rate", "win-rate", "stops", "harness"})
_AT_MOST: Final = frozenset({"repetition", "nll", "not-worse"})
_PLAIN: Final = frozenset(
    {"regression", "improvement", "nll-regression", "contamination", "parity", "provenance", "harness-regression"}
)
_UNBOUNDED: Final = frozenset({"nll", "harness"})
_GATE: Final = re.compile(r"([a-z-]+)(?:\.([^=]+))?(?:=(\d+(?:\.\d+)?)(%?))?")


@dataclass(frozen=True, slots=True)
class EvaluateGate:
    """One condition of `--fail-on`: `NAME`, `NAME=VALUE`, or `NAME.WHERE=VALUE` for one suite or tag."""

    kind: str
    where: str
    value: float
    text: str

    @classmethod
    def parse(cls, text: str) -> EvaluateGate:
        """ValueError where there is no such gate, or its value is missing or not wanted."""
        found = _GATE.fullmatch(text)
        kind = found[1] if found else text
        if found is None or kind not in _AT_LEAST | _AT_MOST | _PLAIN:
            known = ", ".join(sorted(_AT_LEAST | _AT_MOST | _PLAIN))
            raise ValueError(f"no gate is {text!r}: {known}")
        if (found[3] is None) != (kind in _PLAIN):
            raise ValueError(
                f"{kind} {'takes no value' if kind in _PLAIN else 'needs a value, as in ' + kind + '=0.9'}"
            )
        value = float(found[3] or 0) / (100 if found[4] else 1)
        if kind not in _UNBOUNDED and value > 1:
            raise ValueError(f"{text}: the value is a share, from 0 to 1 or a percentage")
        return cls(kind, found[2] or "", value, text)

    def holds(self, measured: float) -> bool:
        """Whether a measured share or loss is on the right side of the value."""
        return measured >= self.value if self.kind in _AT_LEAST else measured <= self.value


class EvaluateConfig(BaseModel):
    """What to evaluate, on what, and what makes it fail."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    model: ModelName = Field(
        description="The model to judge: a directory, a hub id, a GGUF file, or a directory with one."
    )
    baseline: ModelName | None = Field(default=None, description="The model to compare with, case by case.")
    suite: tuple[str, ...] = Field(
        default=(),
        description="A suite's YAML file or its URL, or the name of one that comes with sftprep; again for more.",
    )
    held_out: Place | None = Field(
        default=None, description="A packed set of held-out rows, or its URL: their loss per token, byte and category."
    )
    trained_on: Place | None = Field(
        default=None,
        description="The packed set that the model was trained on, or its URL: its audit, template and stop tokens, "
        "and whether its rows hold the suites' cases.",
    )
    against: tuple[InputPlace, ...] = Field(
        default=(), description="Files of training rows in which to look for the suites' cases; again for more."
    )
    fail_on: tuple[str, ...] = Field(
        default=(),
        description="A gate: pass-rate=0.8, stops=0.95, repetition=0.2 (each also for one suite or tag: "
        "pass-rate.safety=1), win-rate=0.5, regression, improvement, not-worse=0.05, nll=2.5, nll-regression, "
        "contamination, parity, provenance, harness.TASK=0.4, harness-regression. Those that can be checked without "
        "a value always are, but for improvement. Regressions and improvements are shown at 95 %, corrected for the "
        "number of suites, by McNemar's exact test of what is passed and, where values are more than passed or not, "
        "by a sign-flip test of the values, each then at half of the level.",
    )
    harness: tuple[str, ...] = Field(
        default=(),
        description="A task of lm-evaluation-harness (extra `harness`) by name or YAML file; again for more.",
    )
    harness_limit: int | None = Field(default=None, ge=1, description="Documents of each task, the first ones.")
    harness_plain: bool = Field(
        default=False, description="Ask the tasks' questions as they are, not through the model's chat template."
    )
    endpoint: str | None = Field(
        default=None,
        description="An OpenAI-compatible server to ask instead, such as http://127.0.0.1:8000/v1; "
        "the models are those that it calls so.",
    )
    judge: str | None = Field(
        default=None, description="A model that compares the answers with the baseline's, or with the references."
    )
    judge_endpoint: str | None = Field(default=None, description="The judge's OpenAI-compatible server.")
    concurrency: int = Field(default=8, ge=1, description="Requests to a server at a time.")
    requests_per_second: float = Field(default=0.0, ge=0, description="At most so many; 0 sets no limit.")
    answers: LocalPath | None = Field(
        default=None, description="Keep what servers answer in this file; the same command then asks only the rest."
    )
    max_new_tokens: int | None = Field(default=None, ge=1, description="Of every answer, in place of the suites'.")
    batch_size: int = Field(default=8, ge=1, description="Answers generated together; greedy ones do not depend on it.")
    temperature: float = Field(default=0.0, ge=0, description="0 takes the most probable token; above, it is sampled.")
    seed: int = Field(default=0, ge=0, lt=2**63, description="Of sampling and of the bootstrap.")
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="Where to generate.")
    threads: int | None = Field(default=None, ge=1, description="CPU threads (default: torch's own choice).")
    cache_dir: LocalPath = Field(default=CACHE_DIR, description="Where shards of a URL are copied.")
    cache_gb: float = Field(default=CACHE_GB, gt=0, description="Gigabytes that the copies may take.")
    json_file: FilePlace | None = Field(default=None, description="Write the report as JSON to this file or URL.")
    html: FilePlace | None = Field(default=None, description="Write the report as one page, answers side by side.")

    @field_validator("fail_on")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            EvaluateGate.parse(text)
        return value

    @model_validator(mode="after")
    def _possible(self) -> EvaluateConfig:
        kinds = {gate.kind for gate in self.gates}
        needs = {
            "regression": ("--baseline and --suite", self.baseline is not None and bool(self.suite)),
            "improvement": ("--baseline and --suite", self.baseline is not None and bool(self.suite)),
            "not-worse": ("--baseline and --suite", self.baseline is not None and bool(self.suite)),
            "win-rate": ("--judge", self.judge is not None),
            "nll": ("--held-out", self.held_out is not None),
            "nll-regression": ("--held-out and --baseline", self.held_out is not None and self.baseline is not None),
            "contamination": ("--trained-on or --against", self.trained_on is not None or bool(self.against)),
            "parity": ("--trained-on", self.trained_on is not None),
            "provenance": ("--trained-on", self.trained_on is not None),
            "harness": ("--harness", bool(self.harness)),
            "harness-regression": ("--harness and --baseline", bool(self.harness) and self.baseline is not None),
        }
        for kind, (what, is_given) in needs.items():
            if kind in kinds and not is_given:
                raise ValueError(f"--fail-on {kind} needs {what}")
        if not self.suite and self.held_out is None and not self.harness:
            raise ValueError("nothing to evaluate: give --suite, --held-out or --harness")
        if self.endpoint is not None and (self.held_out is not None or self.trained_on is not None or self.harness):
            raise ValueError("--endpoint answers suites: it takes neither --held-out nor --trained-on nor --harness")
        if (self.judge is None) != (self.judge_endpoint is None):
            raise ValueError("--judge and --judge-endpoint belong together")
        outputs = {"--json": self.json_file, "--html": self.html, "--answers": self.answers}
        refuse_inside(outputs, {"--held-out": self.held_out, "--trained-on": self.trained_on})
        return self

    @property
    def gates(self) -> tuple[EvaluateGate, ...]:
        """The conditions of --fail-on."""
        return tuple(EvaluateGate.parse(text) for text in self.fail_on)

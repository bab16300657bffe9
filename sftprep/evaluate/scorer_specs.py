"""What a case of a suite asks of its answer: one frozen model a scorer, told apart by `kind`."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import jsonschema_rs
from pydantic import BaseModel, ConfigDict, Field, field_validator

from sftprep.errors import UsageError
from sftprep.evaluate.plug_ins import plug_in


class _Spec(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


Texts = Annotated[tuple[str, ...], Field(min_length=1)]


class Exact(_Spec):
    """The answer is one of these texts, white space at its ends aside."""

    kind: Literal["exact"]
    expected: Texts


class Normalised(_Spec):
    """The same after SQuAD's normalisation: case, punctuation, articles and white space do not count."""

    kind: Literal["normalised"]
    expected: Texts


class TokenF1(_Spec):
    """SQuAD's F1 over normalised words, the best of the expected texts."""

    kind: Literal["token-f1"]
    expected: Texts
    passes_at: float = Field(default=0.5, ge=0, le=1, description="The F1 from which the case is passed.")


class Choice(_Spec):
    """The answer names one of the choices, by its label or by its text."""

    kind: Literal["choice"]
    expected: str = Field(description="A label of `choices`.")
    choices: dict[str, str] = Field(min_length=2, description="Label to text.")

    @field_validator("choices")
    @classmethod
    def _distinct(cls, value: dict[str, str]) -> dict[str, str]:
        if len({text.casefold() for text in value.values()}) < len(value):
            raise ValueError("two choices have the same text")
        return value

    def model_post_init(self, context: Any, /) -> None:
        """ValueError where no choice has the expected label."""
        if self.expected not in self.choices:
            raise ValueError(f"{self.expected!r} is no label of the choices")


class Numeric(_Spec):
    """The last number of the answer is the expected one."""

    kind: Literal["numeric"]
    expected: float
    tolerance: float = Field(default=1e-6, ge=0, description="Relative to the expected number, or absolute below 1.")


class Regex(_Spec):
    """A pattern is found in the answer, or with `absent` is not."""

    kind: Literal["regex"]
    pattern: str
    absent: bool = False
    ignore_case: bool = False

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from error
        return value


class JsonFields(_Spec):
    """The answer is, or holds, a JSON value with the expected fields; F1 over leaves, passed where all are equal."""

    kind: Literal["json-fields"]
    expected: dict[str, Any]
    json_schema: dict[str, Any] | None = Field(default=None, description="Must accept the answer's value.")

    @field_validator("json_schema")
    @classmethod
    def _is_schema(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        if value is not None:
            jsonschema_rs.validator_for(value)
        return value


class ToolCalls(_Spec):
    """The answer calls these functions with these arguments and no others; none where the list is empty."""

    kind: Literal["tool-calls"]
    expected: tuple[ExpectedCall, ...]


class ExpectedCall(_Spec):
    """A call by name and arguments."""

    name: str
    arguments: dict[str, Any] = Field(default_factory=dict)


class Instruction(_Spec):
    """One instruction that a program can verify; `value` is a number, a text or a list, as the check needs."""

    check: Literal[
        "min-words",
        "max-words",
        "min-sentences",
        "max-sentences",
        "num-paragraphs",
        "num-starred-parts",
        "num-bullets",
        "min-placeholders",
        "min-highlights",
        "min-capital-words",
        "max-capital-words",
        "keywords",
        "keyword-at-least",
        "keyword-at-most",
        "forbidden-words",
        "letter-at-least",
        "letter-at-most",
        "one-of",
        "starts-with",
        "ends-with",
        "paragraph-starts-with",
        "sections",
        "postscript",
        "title",
        "quoted",
        "two-answers",
        "all-lowercase",
        "all-uppercase",
        "no-commas",
        "is-json",
        "language",
    ]
    value: int | str | tuple[str, ...] = ""
    number: int | None = Field(
        default=None, ge=0, description="How often a keyword or letter, how many sections, or which paragraph."
    )

    def model_post_init(self, context: Any, /) -> None:
        """ValueError where the value or the number is not what the check needs."""
        wanted = _VALUE_OF.get(self.check)
        if wanted is not None and (not isinstance(self.value, wanted) or self.value in ("", ())):
            raise ValueError(f"{self.check} needs a value: {_NAMES[wanted]}")
        if (self.number is not None) != (self.check in _COUNTED):
            needs = "needs a number" if self.check in _COUNTED else "takes no number"
            raise ValueError(f"{self.check} {needs}")


_COUNTED = frozenset(
    (
        "keyword-at-least",
        "keyword-at-most",
        "letter-at-least",
        "letter-at-most",
        "sections",
        "paragraph-starts-with",
    )
)
_VALUE_OF: dict[str, type] = {
    **dict.fromkeys(("min-words", "max-words", "min-sentences", "max-sentences", "num-paragraphs"), int),
    **dict.fromkeys(("num-starred-parts", "num-bullets", "min-placeholders", "min-highlights"), int),
    **dict.fromkeys(("min-capital-words", "max-capital-words"), int),
    **dict.fromkeys(("keywords", "forbidden-words", "one-of"), tuple),
    **dict.fromkeys(("starts-with", "ends-with", "postscript", "language", *_COUNTED), str),
}
_NAMES: dict[type, str] = {int: "a number", tuple: "a list of texts", str: "a text"}


class Instructions(_Spec):
    """Verifiable instructions as in IFEval: the share that is followed, passed where all are."""

    kind: Literal["instructions"]
    checks: tuple[Instruction, ...] = Field(min_length=1)


class Stops(_Spec):
    """The model ended its answer by itself, with a stop token."""

    kind: Literal["stops"]


class Repetition(_Spec):
    """The share of the answer's 4-word runs that were there before is at most `at_most`."""

    kind: Literal["repetition"]
    at_most: float = Field(default=0.2, ge=0, le=1)


class Refusal(_Spec):
    """The answer refuses, or with `wanted: false` does not."""

    kind: Literal["refusal"]
    wanted: bool = True


class NoLeak(_Spec):
    """None of these texts is in the answer, however it is spelled, nor a part of it, nor in a common encoding."""

    kind: Literal["no-leak"]
    secrets: Texts
    part: int | None = Field(
        default=None,
        ge=3,
        description="So many letters and digits of a secret in a row are a part (default: half of them, 32 at most, "
        "and any 4 digits of it that stand as a number).",
    )


class Tone(_Spec):
    """No stock phrase of assistants, and where asked no apology, contraction or exclamation mark."""

    kind: Literal["tone"]
    forbid: tuple[Literal["boilerplate", "apology", "contraction", "exclamation"], ...] = ("boilerplate",)


class Grounded(_Spec):
    """The answer's numbers, names and words are those of a context; passed where at most a share `at_most` is not."""

    kind: Literal["grounded"]
    context: str
    at_most: float = Field(default=0.3, ge=0, le=1)


class PlugIn(_Spec):
    """A scorer of another package: an entry point of the group `sftprep.scorers`."""

    kind: Literal["plug-in"]
    name: str
    options: dict[str, Any] = Field(default_factory=dict)

    @field_validator("name")
    @classmethod
    def _is_installed(cls, value: str) -> str:
        """A scorer that is not there is named with the case, before any model is opened."""
        try:
            plug_in(value)
        except UsageError as error:
            raise ValueError(f"{error.message}; {error.hint}") from error
        return value


ScorerSpec = Annotated[
    Exact
    | Normalised
    | TokenF1
    | Choice
    | Numeric
    | Regex
    | JsonFields
    | ToolCalls
    | Instructions
    | Stops
    | Repetition
    | Refusal
    | NoLeak
    | Tone
    | Grounded
    | PlugIn,
    Field(discriminator="kind"),
]
ToolCalls.model_rebuild()

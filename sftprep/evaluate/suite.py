"""A suite: a YAML file that says what is asked, and a JSONL file of cases, each with tags and scorers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from sftprep.config.evaluate import EvaluateGate
from sftprep.config.places import is_remote, place_of
from sftprep.data import Conversation, RowAddress, Severity
from sftprep.errors import SourceError, UsageError
from sftprep.evaluate.scorer_specs import ScorerSpec
from sftprep.stages.validate import validate_row
from sftprep.stores.read import read_whole

_SUITES: Final = files("sftprep.evaluate") / "suites"


class Suite(BaseModel):
    """The YAML file of a suite."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$", description="What reports and gates call it.")
    description: str = Field(min_length=1, description="What it measures, and what it does not.")
    cases: str = Field(description="The JSONL file of cases, relative to this file.")
    scorers: tuple[ScorerSpec, ...] = Field(default=(), description="Of every case, before the case's own.")
    max_new_tokens: int = Field(default=256, ge=1)
    gates: tuple[str, ...] = Field(default=(), description="Conditions that this suite brings, as for --fail-on.")

    @field_validator("gates")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for text in value:
            EvaluateGate.parse(text)
        return value


class Case(BaseModel):
    """One line of a suite's cases: what the model is asked, and what judges its answer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(min_length=1)
    messages: list[dict[str, Any]] = Field(min_length=1, description="As in a chat row, up to the answer.")
    tools: list[dict[str, Any]] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    tags: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        min_length=1, description="What the case is about, one at least: results are broken down by it."
    )
    source: Literal["human", "synthetic"] | None = Field(
        default=None, description="Who wrote the case: results are told apart by it."
    )
    scorers: tuple[ScorerSpec, ...] = ()
    reference: str | None = Field(default=None, description="An answer to be shown, or to be judged against.")


@dataclass(frozen=True, slots=True)
class LoadedCase:
    """A case, the conversation that the template is given, and all its scorers."""

    suite: str
    case: Case
    conversation: Conversation
    scorers: tuple[ScorerSpec, ...]
    max_new_tokens: int


@dataclass(frozen=True, slots=True)
class LoadedSuite:
    """A suite that was read whole."""

    suite: Suite
    place: Path
    cases: Sequence[LoadedCase]


def read_suite(name: str) -> LoadedSuite:
    """A suite by its YAML file, or by the name of one that comes with sftprep.

    Raises:
        SourceError: `bad-suite`, `bad-case`: by file and line; `read-failed`. UsageError: `missing-file`; `no-access`
            where it is at a URL.
    """
    place = _place(name)
    try:
        suite = Suite.model_validate(yaml.safe_load(_read(place).decode("utf-8")))
        lines = _read(place.parent / suite.cases).split(b"\n")
    except (OSError, UnicodeDecodeError, yaml.YAMLError, ValidationError) as error:
        raise _bad_suite(_said(error), place=str(place), hint="sftprep schema suite shows what it may hold") from error
    file = str(place.parent / suite.cases)
    cases = list(_cases(suite, file, lines))
    if not cases:
        raise _bad_suite("the suite has no cases", place=file, hint="write one JSON object a line")
    return LoadedSuite(suite, place, cases)


def _place(name: str) -> Path:
    place = place_of(name)
    if is_remote(place) or place.is_file():
        return place
    own = Path(str(_SUITES / f"{name}.yaml"))
    if not own.is_file():
        known = ", ".join(own_suites())
        hint = f"name a YAML file, or one of: {known}"
        raise UsageError("there is no such file", code="missing-file", place=name, hint=hint)
    return own


def _read(file: Path) -> bytes:
    return read_whole(file) if is_remote(file) else file.read_bytes()


def own_suites() -> list[str]:
    """Names of the suites that come with sftprep."""
    return sorted(entry.name.removesuffix(".yaml") for entry in _SUITES.iterdir() if entry.name.endswith(".yaml"))


def _cases(suite: Suite, file: str, lines: Sequence[bytes]) -> Iterator[LoadedCase]:
    known: set[str] = set()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        address = RowAddress(file, number)
        try:
            case = Case.model_validate_json(line)
        except ValidationError as error:
            raise _bad_case(_said(error), address) from error
        scorers = (*suite.scorers, *case.scorers)
        if case.id in known:
            raise _bad_case(f"the id {case.id!r} is there twice", address)
        if not scorers:
            raise _bad_case("nothing judges the case: neither it nor its suite has a scorer", address)
        known.add(case.id)
        yield LoadedCase(suite.name, case, _conversation(case, address), scorers, suite.max_new_tokens)


def _conversation(case: Case, address: RowAddress) -> Conversation:
    """The messages as a chat row's are checked: an answer is put behind them for that, and taken off again."""
    row: dict[str, Any] = {"messages": [*case.messages, {"role": "assistant", "content": "x"}]}
    if case.tools is not None:
        row["tools"] = case.tools
    if case.chat_template_kwargs is not None:
        row["chat_template_kwargs"] = case.chat_template_kwargs
    checked = validate_row(json.dumps(row).encode(), address=address, format=None)
    if checked.conversation is None:
        wrong = next(finding for finding in checked.findings if finding.severity is Severity.ERROR)
        raise _bad_case(f"{wrong.pointer}: {wrong.message}", address)
    found = checked.conversation
    return Conversation(
        address, found.messages[:-1], found.weights[:-1], found.tools, found.template_kwargs, found.metadata
    )


def _said(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"/{'/'.join(map(str, first['loc']))}: {first['msg'].removeprefix('Value error, ')}"
    return str(error).partition("\n")[0]


def _bad_suite(what: str, *, place: str, hint: str) -> SourceError:
    return SourceError(what, code="bad-suite", place=place, hint=hint)


def _bad_case(what: str, address: RowAddress) -> SourceError:
    return SourceError(what, code="bad-case", place=str(address), hint="sftprep schema suite-case shows a case")

"""The tour that `sftprep demo` runs, through the public calls: validate, pack, audit, train, and an answer.

from sftprep.config.demo import DemoConfig
from sftprep.demo import run_demo

run_demo(DemoConfig(out="demo")).answers[0].text
"""

from __future__ import annotations

import importlib.util
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.markup import escape

from sftprep.config.audit import AuditConfig
from sftprep.config.demo import DemoConfig
from sftprep.config.pack import PackConfig
from sftprep.config.places import unwritten
from sftprep.config.train import TrainConfig
from sftprep.config.validate import ValidateConfig
from sftprep.errors import OutputError, UsageError
from sftprep.prepare.audit import audit
from sftprep.prepare.pack import pack
from sftprep.prepare.validate import validate_files
from sftprep.reports.console import terminal_console
from sftprep.reports.mask_terminal import print_summary

MAX_LENGTH: Final = 512
BATCH_SIZE: Final = 4
LEARNING_RATE: Final = 3e-3
MAX_ANSWER_TOKENS: Final = 80

QUESTIONS: Final = ("What is a buoy?", "When is the next high tide?", "What is a seagull?")
"""Two that the samples hold, and one that they do not."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What the trained model said to a question; `stopped` where it ended by itself."""

    question: str
    text: str
    stopped: bool


@dataclass(frozen=True, slots=True)
class DemoResult:
    """Where to look: two pages, and answers of the trained model."""

    audit_page: Path
    loss_curve: Path
    replies: tuple[Reply, ...]


@dataclass(frozen=True, slots=True)
class Places:
    """Where the tour keeps what it makes."""

    root: Path

    @property
    def chats(self) -> tuple[Path, ...]:
        """The copied chat files, in the order in which a shell expands the pattern."""
        return tuple(sorted((self.root / "chats").glob("*.jsonl")))

    @property
    def pattern(self) -> str:
        """The chat files as one types them."""
        return f"{self.quoted('chats')}/*.jsonl"

    def quoted(self, name: str) -> str:
        """A path below the root as one types it."""
        return shlex.quote(str(self.root / name))


def run_demo(config: DemoConfig, *, console: Console | None = None) -> DemoResult:
    """Run the four commands on the samples that come with sftprep, and ask the trained model three questions.

    Raises:
        OutputError: `output-not-empty`, `output-not-writable`, `disk-full`.
        UsageError: `missing-extra` after the audit, where torch is not installed.
    """
    screen = console or terminal_console(markup=True)
    places = Places(config.out)
    _lay_out(config, places)
    _validate(places, screen)
    _pack(config, places, screen)
    page = _audit(places, screen)
    if not (importlib.util.find_spec("torch") and importlib.util.find_spec("transformers")):
        raise UsageError(
            "training needs torch and transformers; validate, pack and audit have run",
            code="missing-extra",
            hint="pip install 'sftprep[train]', then run the same command with --overwrite",
        )
    curve = _train(config, places, screen)
    result = DemoResult(audit_page=page, loss_curve=curve, replies=_ask(places))
    _show(result, screen)
    return result


def samples_directory() -> Path:
    """The samples: inside an installed package, beside it in a clone.

    Raises:
        UsageError: `no-samples`.
    """
    package = Path(__file__).resolve().parent
    for directory in (package / "data_samples", package.parent / "data_samples"):
        if (directory / "model" / "tokenizer.json").is_file():
            return directory
    raise UsageError("the samples did not come with this installation", code="no-samples", place=str(package))


def _lay_out(config: DemoConfig, places: Places) -> None:
    """Copy the samples to where the printed commands read them."""
    if places.root.exists() and not config.overwrite and (not places.root.is_dir() or any(places.root.iterdir())):
        raise OutputError(
            "there is something already", code="output-not-empty", place=str(places.root), hint="--out, or --overwrite"
        )
    samples, is_new = samples_directory(), not places.root.exists()
    try:
        _copy(samples / "good", places.root / "chats")
        _copy(samples / "model", places.root / "model")
    except OSError as error:
        if is_new:
            shutil.rmtree(places.root, ignore_errors=True)
        raise unwritten(places.root, error) from error


def _copy(source: Path, target: Path) -> None:
    """The files of a directory. OSError of the first that cannot be written, where `shutil.copytree` lists all."""
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(path for path in source.iterdir() if path.is_file()):
        shutil.copyfile(path, target / path.name)


def _command(screen: Console, *words: str) -> None:
    screen.print(f"\n[bold]$ sftprep {escape(' '.join(words))}[/bold]", soft_wrap=True)


def _validate(places: Places, screen: Console) -> None:
    _command(screen, "validate", places.pattern)
    report = validate_files(ValidateConfig(files=places.chats))
    screen.print(f"{report.good} good rows, {report.bad} bad rows")


def _pack(config: DemoConfig, places: Places, screen: Console) -> None:
    model, shards = places.quoted("model"), places.quoted("shards")
    options = [f"--max-length {MAX_LENGTH}", *(["--overwrite"] if config.overwrite else [])]
    _command(screen, "pack", places.pattern, "--model", model, "--out", shards, *options)
    pack(
        PackConfig(
            files=places.chats,
            model=str(places.root / "model"),
            out=places.root / "shards",
            max_length=MAX_LENGTH,
            overwrite=config.overwrite,
        )
    )


def _audit(places: Places, screen: Console) -> Path:
    page = places.root / "audit.html"
    _command(screen, "audit", places.quoted("shards"), "--html", places.quoted("audit.html"))
    print_summary(audit(AuditConfig(directory=places.root / "shards", html=page)).report, screen)
    return page


def _train(config: DemoConfig, places: Places, screen: Console) -> Path:
    # torch and transformers are an optional extra, and take four seconds to import.
    from sftprep.train.run import train

    run = TrainConfig(
        data=places.root / "shards",
        model=str(places.root / "model"),
        out=places.root / "trained",
        init="random",
        epochs=config.steps,
        max_steps=config.steps,
        batch_size=BATCH_SIZE,
        grad_accum=1,
        lr=LEARNING_RATE,
        threads=1,  # the model is so small that threads cost more than they give
        overwrite=config.overwrite,
    )
    shown = [f"--{name} {getattr(run, name.replace('-', '_'))}" for name in ("init", "epochs", "max-steps")]
    shown += [f"--batch-size {BATCH_SIZE}", "--grad-accum 1", f"--lr {LEARNING_RATE}", "--threads 1"]
    shown += ["--overwrite"] if config.overwrite else []
    data, model, out = (places.quoted(name) for name in ("shards", "model", "trained"))
    _command(screen, "train", data, "--model", model, "--out", out, *shown)
    return train(run).out / "loss.html"


def _ask(places: Places) -> tuple[Reply, ...]:
    """Put the questions as a server would: transformers renders and encodes them from the saved directory."""
    # torch and transformers are an optional extra, and take four seconds to import.
    from transformers import AutoTokenizer

    from sftprep.train.generate import answers  # imports torch

    directory = places.root / "trained"
    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    prompts: Sequence[Sequence[int]] = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_dict=False
        )
        for question in QUESTIONS
    ]
    found = answers(directory, prompts, max_new_tokens=MAX_ANSWER_TOKENS)
    texts = [tokenizer.decode(answer.ids, skip_special_tokens=True) for answer in found]
    return tuple(
        Reply(question=question, text=text, stopped=answer.stopped)
        for question, text, answer in zip(QUESTIONS, texts, found, strict=True)
    )


def _show(result: DemoResult, screen: Console) -> None:
    """Where to look."""
    screen.print("\n[bold]The trained model[/bold]")
    for reply in result.replies:
        end = "stopped by itself" if reply.stopped else f"cut after {MAX_ANSWER_TOKENS} tokens"
        screen.print(f"  {escape(reply.question)}\n    {escape(reply.text)}  [dim]({end})[/dim]", soft_wrap=True)
    screen.print("\n[bold]Where to look[/bold]")
    screen.print(f"  which tokens are trained, and why   {escape(str(result.audit_page))}", soft_wrap=True)
    screen.print(f"  the loss, step by step              {escape(str(result.loss_curve))}", soft_wrap=True)

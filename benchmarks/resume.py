"""How long a resumed run takes, from the start of its command to its first step, at several steps of a run.

python benchmarks/resume.py MODEL [--steps 2 200]

For each step a run of `sftprep train` is killed once it has saved there, and goes on three times by the same command
with `--resume`, in a process of its own. What counts begins where the process is started and ends where the first
step's own seconds, which metrics.jsonl tells, begin. Rows are short, so that getting to a late step takes minutes, not
hours; a resumption reads none of those that are behind it. Files are in memory already: how fast a disk gives them is
not measured. CPU only, two threads at the most.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sftprep.config.pack import PackConfig
from sftprep.prepare.pack import pack

TICKS = os.sysconf("SC_CLK_TCK")
POLL_SECONDS = 0.02
WORDS = ["the", "water", "of", "a", "lake", "moves", "under", "the", "ice", "and", "stays", "warm", "in", "winter"]


@dataclass(frozen=True, slots=True)
class Start:
    """Until the first step: seconds on the wall, and of CPUs."""

    wall: float
    cpu: float


def short_chats(path: Path) -> None:
    draw = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(600):
            texts = {role: " ".join(draw.choices(WORDS, k=draw.randint(3, 12))) for role in ("user", "assistant")}
            messages = [{"role": role, "content": text} for role, text in texts.items()]
            file.write(json.dumps({"messages": messages}) + "\n")


def command(data: Path, model: str, out: Path) -> list[str]:
    options = ["--max-steps", "1000000", "--epochs", "1000000", "--grad-accum", "1", "--device", "cpu"]
    return [sys.executable, "-m", "sftprep", "train", str(data), "--model", model, "--out", str(out), *options]


@contextmanager
def running(arguments: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """The process, which is killed at the end."""
    started = subprocess.Popen(arguments, stderr=subprocess.DEVNULL)
    try:
        yield started
    finally:
        started.kill()
        started.wait()


def waiting(process: subprocess.Popen[bytes]) -> Iterator[float]:
    """The time, again and again, while the process lives."""
    while process.poll() is None:
        time.sleep(POLL_SECONDS)
        yield time.monotonic()
    raise SystemExit(f"ended with {process.returncode}: {' '.join(process.args)}")


def save_at(data: Path, model: str, out: Path, *, step: int) -> Path:
    """A run's directory, killed behind the checkpoint after `step`, with the lines of no step behind it."""
    place = out.with_name(f"{out.name}.running")
    saved = place / "checkpoints" / f"step-{step:08d}"
    with running([*command(data, model, out), "--save-every", str(step)]) as process:
        next(now for now in waiting(process) if saved.exists())
    metrics = place / "metrics.jsonl"
    lines = metrics.read_text(encoding="utf-8").splitlines(keepends=True)[:step]
    metrics.write_text("".join(lines), encoding="utf-8")
    return metrics


def resumed(data: Path, model: str, out: Path, *, metrics: Path) -> Start:
    before, began, used = metrics.stat().st_size, time.monotonic(), [(0.0, 0.0)]
    with running([*command(data, model, out), "--resume"]) as process:
        for now in waiting(process):
            used.append((now - began, cpu_seconds(process.pid)))
            text = metrics.read_bytes()
            if len(text) > before and text.endswith(b"\n"):
                break
    line: dict[str, Any] = json.loads(text.splitlines()[-1])
    metrics.write_bytes(text[:before])
    return max((Start(*found) for found in used if found[0] <= used[-1][0] - line["seconds"]), key=lambda s: s.wall)


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def report(data: Path, model: str, place: Path, *, steps: list[int], times: int = 3) -> Iterator[str]:
    """A line for each step: the least of several resumptions."""
    for step in steps:
        out = place / f"resumed-{step}"
        metrics = save_at(data, model, out, step=step)
        found = [resumed(data, model, out, metrics=metrics) for _ in range(times)]
        wall, cpu = min(start.wall for start in found), min(start.cpu for start in found)
        load = f"load average {os.getloadavg()[0]:.1f}"
        yield f"resume: {wall:.2f} s from the command to the first step after {step}, {cpu:.2f} CPU s; {load}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--steps", nargs="+", type=int, default=[2, 200])
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        short_chats(place / "chats.jsonl")
        pack(PackConfig(files=(place / "chats.jsonl",), model=given.model, out=place / "set", max_length=128))
        for line in report(place / "set", given.model, place, steps=given.steps):
            print(line, flush=True)


if __name__ == "__main__":
    main()

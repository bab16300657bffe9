"""What more rows and more workers cost: CPU seconds of the parent and of its children, wall, and memory.

    python benchmarks/pack_scaling.py [--rows 10000,100000] [--workers 1,2] [--model DIR] [--folder DIR]

Conversations are recomposed, by a seed, of the turns of real ones (../shared/corpus where it is, else data_samples):
the shape of one, each text that of another message of its role, so that no conversation is there twice. On a machine
that does other work too, wall says little: two workers are worth what they divide, so that the bounds that CPU seconds
set are shown beside it. Behind the last chunk is the "tail": the parent plans and publishes, and whoever is there
gathers, writes and audits the shards. In either half the parent and half of the children's seconds go on side by side
(three cores), or share the machine (two cores).
Memory is the resident sets of all processes together at their highest, looked at five times a second; pages that they
share count for each. "own" are those that are no file's: pages of the finished chunks on the disk are let go again.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pack import CORPUS, HERE, ONE_THREAD, SAMPLES, is_plain

from sftprep.shards.read import open_shard_set
from sftprep.sources.lines import read_rows

RUN = """
import json, os, resource, sys, time
from pathlib import Path
from sftprep.cli.app import app
from sftprep.prepare import pack

plan, behind = pack._plan, []

def of_children(process="self"):
    # Those that are there, what these have waited for, and theirs: children are forked from one that stays.
    found = 0
    for task in Path(f"/proc/{process}/task").iterdir():
        for child in (task / "children").read_text().split():
            stat = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
            found += sum(map(int, stat[11:15])) / os.sysconf("SC_CLK_TCK") + of_children(child)
    return found

def noted(*arguments):
    behind.extend([time.process_time(), of_children()])
    return plan(*arguments)

pack._plan = noted
try:
    app(sys.argv[1:])
except SystemExit as end:
    code = end.code
own, others = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
told = {"parent": own.ru_utime + own.ru_stime, "children": others.ru_utime + others.ru_stime + of_children()}
told["tail_children"] = max(0.0, told["children"] - behind[1])
print(json.dumps({**told, "tail": time.process_time() - behind[0]}))
sys.exit(code)
"""


@dataclass(frozen=True, slots=True)
class Cost:
    parent: float
    tail: float
    """Of the parent, behind the last chunk."""
    children: float
    tail_children: float
    """Of the children, behind the last chunk."""
    wall: float
    peak: float
    own: float
    num_tokens: int
    sha256: tuple[str, ...]
    """Of each shard: the same for any number of workers, or the run fails."""

    @property
    def cpu(self) -> float:
        return self.parent + self.children

    def least(self, cores: int) -> float:
        """Seconds that it would take two workers on so many cores with nothing else to do."""
        halves = ((self.parent - self.tail, self.children - self.tail_children), (self.tail, self.tail_children))
        return sum(max(parent, children / 2, (parent + children) / cores) for parent, children in halves)


def recomposed(count: int) -> Iterator[bytes]:
    """Conversations of the shapes of real ones, each text drawn from those of its role."""
    bench = CORPUS / "bench" / "chat_10k.jsonl.zst"
    paths = [bench] if bench.exists() else sorted((SAMPLES / "good").glob("*.jsonl"))
    rows = [json.loads(row.raw) for path in paths for row in read_rows(path, name=path.name)]
    shapes = [row["messages"] for row in rows if is_plain(row)]
    texts: dict[str, list[str]] = defaultdict(list)
    for messages in shapes:
        for message in messages:
            texts[message["role"]].append(message["content"])
    draw = random.Random(0)
    for _ in range(count):
        messages = [{"role": m["role"], "content": draw.choice(texts[m["role"]])} for m in draw.choice(shapes)]
        yield json.dumps({"messages": messages}, ensure_ascii=False).encode() + b"\n"


def resident(pid: int) -> np.ndarray:
    """Bytes of a process and all that descend from it, and those of no file; such as have just ended have none."""
    try:
        pages, of_files = map(int, Path(f"/proc/{pid}/statm").read_text().split()[1:3])
        children = [
            child for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
        ]
    except (OSError, IndexError):
        return np.zeros(2)
    own = np.array([pages, pages - of_files]) * os.sysconf("SC_PAGE_SIZE")
    return own + sum((resident(int(child)) for child in children), np.zeros(2))


def packed(rows: Path, model: Path, out: Path, workers: int) -> Cost:
    words = ["pack", str(rows), "--model", str(model), "--out", str(out), "--workers", str(workers)]
    options = ["--max-length", "2048", "--over-length", "drop", "--max-drop", "100%"]
    environment = {**os.environ, **ONE_THREAD, "PYTHONPATH": str(HERE.parent)}
    highest, done = np.zeros(2), threading.Event()
    start = time.perf_counter()
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [sys.executable, "-c", RUN, *words, *options], env=environment, stdout=subprocess.PIPE, stderr=errors
        )

        def watch() -> None:
            while not done.wait(0.2):
                np.maximum(highest, resident(process.pid), out=highest)

        watcher = threading.Thread(target=watch)
        watcher.start()
        told, _ = process.communicate()
        done.set()
        watcher.join()
        errors.seek(0)
        if process.returncode:
            raise RuntimeError(errors.read().decode()[-2000:])
    usage: dict[str, Any] = json.loads(told.decode().strip().rpartition("\n")[2])
    manifest = open_shard_set(out).manifest
    wall = time.perf_counter() - start
    peak, own = highest / 1e6
    sums = tuple(shard.sha256 for shard in manifest.shards)
    return Cost(**usage, wall=wall, peak=peak, own=own, num_tokens=manifest.counts.num_tokens, sha256=sums)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="10000,100000")
    parser.add_argument("--workers", default="1,2")
    known = CORPUS / "models" / "smollm2-135m-instruct"
    parser.add_argument("--model", type=Path, default=known if known.exists() else SAMPLES / "model")
    parser.add_argument("--folder", type=Path, help="where rows and sets lie meanwhile; 8 GB for a million rows")
    options = parser.parse_args()
    print(
        "| conversations | workers | CPU s parent | of it tail | children | of it tail | wall s | tokens "
        "| µs / conversation | ns / token | MB | own |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder, said = Path(name), []
        for count in map(int, options.rows.split(",")):
            rows = folder / f"{count}.jsonl"
            with rows.open("wb") as file:
                file.writelines(recomposed(count))
            costs = {}
            for workers in map(int, options.workers.split(",")):
                cost = packed(rows, options.model, folder / f"set-{count}-{workers}", workers)
                costs[workers] = cost
                if len({cost.sha256 for cost in costs.values()}) > 1:
                    raise RuntimeError(f"{workers} workers write other bytes")
                each = (1e6 * cost.cpu / count, 1e9 * cost.cpu / cost.num_tokens)
                print(
                    f"| {count:,} | {workers} | {cost.parent:.1f} | {cost.tail:.1f} | {cost.children:.1f} | "
                    f"{cost.tail_children:.1f} | "
                    f"{cost.wall:.1f} | {cost.num_tokens:,} | {each[0]:.0f} | {each[1]:.0f} | "
                    f"{cost.peak:,.0f} | {cost.own:,.0f} |",
                    flush=True,
                )
            rows.unlink()
            if {1, 2} <= set(costs):
                one, two = costs[1], costs[2]
                said.append(
                    f"{count:,}: two workers take {one.wall / two.wall:.2f} × less wall; "
                    f"CPU seconds allow {one.cpu / two.least(3):.2f} × on three cores, "
                    f"{one.cpu / two.least(2):.2f} × on two; the tail is {one.tail / one.cpu:.0%} of one worker's"
                )
        print("\n" + "\n".join(said))


if __name__ == "__main__":
    main()

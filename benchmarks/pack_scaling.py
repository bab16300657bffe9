"""What more rows and more workers cost: CPU seconds of the parent and of its children, wall, and memory.

    python benchmarks/pack_scaling.py [--rows 10000,100000] [--workers 1,2] [--model DIR]

Conversations are recomposed, by a seed, of the turns of real ones (../shared/corpus where it is, else data_samples):
the shape of one, each text that of another message of its role, so that no conversation is there twice. On a machine
that does other work too, wall says little: two workers are worth what they divide, so that the bound that CPU seconds
set is shown beside it: the whole of one worker, over the parent's share and the busiest child's half of the rest.
Memory is the resident sets of all processes together at their highest, looked at five times a second; pages that they
share count for each.
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

from pack import CORPUS, HERE, ONE_THREAD, SAMPLES, is_plain

from sftprep.shards.read import open_shard_set
from sftprep.sources.lines import read_rows

RUN = """
import json, resource, sys
from sftprep.cli.app import app
try:
    app(sys.argv[1:])
except SystemExit as end:
    code = end.code
own, others = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
print(json.dumps({"parent": own.ru_utime + own.ru_stime, "children": others.ru_utime + others.ru_stime}))
sys.exit(code)
"""


@dataclass(frozen=True, slots=True)
class Cost:
    parent: float
    children: float
    wall: float
    peak: float
    num_tokens: int

    @property
    def cpu(self) -> float:
        return self.parent + self.children


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


def resident(pid: int) -> int:
    """Bytes of a process and all that descend from it; those that have just ended have none."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        children = [
            child for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
        ]
    except (OSError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE") + sum(resident(int(child)) for child in children)


def packed(rows: Path, model: Path, out: Path, workers: int) -> Cost:
    words = ["pack", str(rows), "--model", str(model), "--out", str(out), "--workers", str(workers)]
    options = ["--max-length", "2048", "--over-length", "drop", "--max-drop", "100%"]
    environment = {**os.environ, **ONE_THREAD, "PYTHONPATH": str(HERE.parent)}
    highest, done = [0], threading.Event()
    start = time.perf_counter()
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [sys.executable, "-c", RUN, *words, *options], env=environment, stdout=subprocess.PIPE, stderr=errors
        )

        def watch() -> None:
            while not done.wait(0.2):
                highest[0] = max(highest[0], resident(process.pid))

        watcher = threading.Thread(target=watch)
        watcher.start()
        told, _ = process.communicate()
        done.set()
        watcher.join()
        errors.seek(0)
        if process.returncode:
            raise RuntimeError(errors.read().decode()[-2000:])
    usage: dict[str, Any] = json.loads(told.decode().strip().rpartition("\n")[2])
    num_tokens = open_shard_set(out).manifest.counts.num_tokens
    return Cost(usage["parent"], usage["children"], time.perf_counter() - start, highest[0] / 1e6, num_tokens)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="10000,100000")
    parser.add_argument("--workers", default="1,2")
    known = CORPUS / "models" / "smollm2-135m-instruct"
    parser.add_argument("--model", type=Path, default=known if known.exists() else SAMPLES / "model")
    options = parser.parse_args()
    print(
        "| conversations | workers | CPU s parent | children | wall s | tokens | µs / conversation | ns / token | MB |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder, said = Path(name), []
        for count in map(int, options.rows.split(",")):
            rows = folder / f"{count}.jsonl"
            with rows.open("wb") as file:
                file.writelines(recomposed(count))
            costs = {}
            for workers in map(int, options.workers.split(",")):
                cost = packed(rows, options.model, folder / f"set-{count}-{workers}", workers)
                costs[workers] = cost
                each = (1e6 * cost.cpu / count, 1e9 * cost.cpu / cost.num_tokens)
                print(
                    f"| {count:,} | {workers} | {cost.parent:.1f} | {cost.children:.1f} | {cost.wall:.1f} | "
                    f"{cost.num_tokens:,} | {each[0]:.0f} | {each[1]:.0f} | {cost.peak:,.0f} |",
                    flush=True,
                )
            rows.unlink()
            if {1, 2} <= set(costs):
                one, two = costs[1], costs[2]
                said.append(
                    f"{count:,}: two workers take {one.wall / two.wall:.2f} × less wall; "
                    f"CPU seconds allow {one.cpu / max(two.parent, two.children / 2):.2f} ×"
                )
        print("\n" + "\n".join(said))


if __name__ == "__main__":
    main()

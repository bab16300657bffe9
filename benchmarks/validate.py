"""How fast rows are validated, beside bare pydantic on the same rows, and whether memory stays flat.

    python benchmarks/validate.py ../shared/corpus/bench/chat_10k.jsonl.zst --workers 1 2 --large 100000

Speed is CPU seconds of one process, the best of several rounds in turn, so a busy machine disturbs both alike. What is
compared is `ChatRow.model_validate_json`, which finds fewer faults: types, keys and roles. Memory is the peak of a
process of its own that runs `sftprep validate` on the rows, and on so many that they repeat. On a busy machine judge
the scaling by the CPU seconds of the parent, which no worker can take over, beside those of its workers: in all, and
of the rows that the larger run has more, without what it takes to start.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from sftprep.config.validate import ValidateConfig
from sftprep.prepare.check import checker
from sftprep.records.openai import ChatRow
from sftprep.sources.blocks import SourceRow
from sftprep.sources.lines import read_rows

MEASURED = """
import json, resource, sys, time
from sftprep.cli.app import app
start = time.perf_counter()
try:
    app(sys.argv[1:], standalone_mode=False)
finally:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    others = resource.getrusage(resource.RUSAGE_CHILDREN)
    took = {"wall": time.perf_counter() - start, "peak_mb": usage.ru_maxrss / 1024}
    took |= {"own": usage.ru_utime + usage.ru_stime, "children": others.ru_utime + others.ru_stime}
    took |= {"worker_mb": others.ru_maxrss / 1024}
    print(json.dumps(took), file=sys.stderr)
"""


def cpu_seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def compare(rows: list[SourceRow], *, rounds: int) -> dict[str, float]:
    """The best CPU seconds of each, over rounds that take turns."""
    check = checker(ValidateConfig(files=("rows",)))
    works: dict[str, Callable[[], object]] = {
        "pydantic model_validate_json": lambda: [ChatRow.model_validate_json(row.raw) for row in rows],
        "sftprep validate, a row": lambda: [check(row) for row in rows],
    }
    best = dict.fromkeys(works, float("inf"))
    for _ in range(rounds):
        for name, work in works.items():
            best[name] = min(best[name], cpu_seconds(work))
    return best


def run(path: Path, *, workers: int) -> dict[str, float]:
    """`sftprep validate` in a process of its own: wall seconds, the parent's peak memory, CPU seconds of each side."""
    command = [sys.executable, "-c", MEASURED, "validate", str(path), "-q", "--workers", str(workers)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    measured: dict[str, float] = json.loads(done.stderr.splitlines()[-1])
    return measured


def line(took: dict[str, float], *, rows: int, workers: int) -> str:
    """What one run took."""
    told = f"{rows:>9,} rows, {workers} workers: {took['wall']:6.2f} s, peak {took['peak_mb']:.0f} MB, "
    told += f"{took['own']:.2f} CPU s of the parent"
    if workers == 1:
        return told
    share = took["own"] / took["children"]
    return f"{told}, {took['children']:.2f} of the workers ({share:.1%}), peak {took['worker_mb']:.0f} MB of one"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, nargs="*", default=[1])
    parser.add_argument("--large", type=int, default=0, help="rows of the larger run for memory; 0: none")
    options = parser.parse_args()
    found = list(read_rows(options.file, name=str(options.file)))
    rows = [row.raw for row in found]
    megabytes = sum(map(len, rows)) / 1e6
    best = compare(found, rounds=options.rounds)
    base, ours = best.values()
    print(f"{len(rows):,} rows, {megabytes:.1f} MB")
    for name, seconds in best.items():
        print(f"{name:<30} {seconds:7.3f} CPU s  {megabytes / seconds:7.1f} MB/s")
    print(f"ratio {base / ours:.2f} (0.50 or more is wanted)")
    small: dict[int, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for count in filter(None, (len(rows), options.large)):
            path = Path(folder) / f"{count}.jsonl"
            with path.open("wb") as file:
                file.writelines(rows[number % len(rows)] + b"\n" for number in range(count))
            for workers in options.workers:
                took = run(path, workers=workers)
                print(line(took, rows=count, workers=workers), flush=True)
                if workers > 1 and workers in small:
                    own, others = (took[key] - small[workers][key] for key in ("own", "children"))
                    shares = f"{own:.2f} of the parent, {others:.2f} of the workers: {own / others:.1%}"
                    print(f"{'':>9}  of the rows more: {shares}", flush=True)
                small.setdefault(workers, took)


if __name__ == "__main__":
    main()

"""What it costs to prepare chats, from JSONL on disk to shards on disk: ours, two trainers', and the floors.

    python benchmarks/pack.py [--rows N] [--model DIR]... [--axolotl DIR]

One table a tokenizer, every line measured in this run: the same conversations, the same tokenizer, masks of assistant
turns only, packing on. Each side is a process of its own, measured by what the system says of it and its children.
"start-up" is the same call on 20 rows; what it does beside is the work. One thread everywhere. Conversations are those
of ../shared/corpus where it is, without tools and reasoning, which not every side takes, and without texts that hold a
control token, which we leave out (or those of data_samples, over and over); they were recombined from real turns, so
that caches help every side more than natural data would. A row holds the longest of them, so that every side encodes
and writes the same tokens: with a shorter --max-length we and Axolotl encode longer ones and drop them, TRL cuts them,
and bare encoding and the floors never see them. Axolotl runs where DIR is what `pip install --no-deps --target DIR
axolotl`, and the same of what it then asks for, has filled.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pack_sides import CHATML_TURN

from sftprep.engines.load import load_model
from sftprep.shards.read import open_shard_set
from sftprep.sources.lines import read_rows

HERE = Path(__file__).resolve().parent
SAMPLES = HERE.parent / "data_samples"
CORPUS = HERE.parent.parent / "shared" / "corpus"
START_UP_ROWS = 20
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "RAYON_NUM_THREADS", "POLARS_MAX_THREADS", "MKL_NUM_THREADS"), "1")


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the table: seconds of CPU and of wall, megabytes at the peak of the largest process."""

    name: str
    cpu: float
    wall: float
    start_up: float = 0.0
    load: tuple[float, float] = (0.0, 0.0)
    """CPU and wall of loading an engine, which is not in the others."""
    num_tokens: int = 0
    num_bytes: int = 0
    peak: float = 0.0

    @property
    def work(self) -> float:
        return self.cpu - self.start_up


@dataclass(frozen=True, slots=True)
class Bench:
    """Where a run has its files, and what it runs over."""

    folder: Path
    model: Path
    rows: Path
    few: Path
    max_length: int
    axolotl: Path | None

    def out(self, name: str) -> Path:
        place = self.folder / f"{self.model.name}-{name}"
        place.mkdir(parents=True)
        return place


def plain_rows(count: int, *, without: Collection[str] = ()) -> Iterator[bytes]:
    """`count` conversations of roles and texts alone, one after another and again from the first.

    None whose texts hold one of `without`.
    """
    bench = CORPUS / "bench" / "chat_10k.jsonl.zst"
    paths = [bench] if bench.exists() else sorted((SAMPLES / "good").glob("*.jsonl"))
    rows = [json.loads(row.raw) for path in paths for row in read_rows(path, name=path.name)]
    found = [json.dumps({"messages": row["messages"]}).encode() for row in rows if is_plain(row, without)]
    for number in range(count):
        yield found[number % len(found)] + b"\n"


def is_plain(row: dict[str, Any], without: Collection[str] = ()) -> bool:
    plain = all(set(m) == {"role", "content"} and isinstance(m["content"], str) for m in row.get("messages", [{}]))
    if not plain or "tools" in row or row["messages"][-1]["role"] != "assistant":
        return False
    return not any(token in message["content"] for message in row["messages"] for token in without)


def measured(name: str, command: Sequence[str], *, path: Path | None = None) -> tuple[Line, dict[str, Any]]:
    """Run a side to its end: what it cost with its children, and the JSON of its last line if it prints one."""
    # Axolotl would send what is run to its makers.
    environment = {**os.environ, **ONE_THREAD, "AXOLOTL_DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1"}
    paths = [str(HERE.parent), *([str(path)] if path else [])]
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    start = time.perf_counter()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=err)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        wall = time.perf_counter() - start
        out.seek(0)
        err.seek(0)
        told, said = out.read().decode(), err.read().decode()
    if process.returncode:
        raise RuntimeError(f"{name} failed: {said[-2000:]}")
    last = told.strip().rpartition("\n")[2]
    line = Line(name, usage.ru_utime + usage.ru_stime, wall, peak=usage.ru_maxrss / 1024)
    return line, json.loads(last) if last.startswith("{") else {}


def ours(bench: Bench, name: str, *options: str) -> Line:
    def command(rows: Path, out: Path) -> list[str]:
        words = [sys.executable, "-m", "sftprep", "pack", str(rows), "--model", str(bench.model), "--out", str(out)]
        length = ["--max-length", str(bench.max_length), "--over-length", "drop", "--max-drop", "100%"]
        return [*words, *length, *options]

    place = bench.out(name)
    few, _ = measured(name, command(bench.few, place / "few"))
    line, _ = measured(f"ours: {name}", command(bench.rows, place / "set"))
    shards = open_shard_set(place / "set")
    num_bytes = sum(path.stat().st_size for path in (place / "set").rglob("*") if path.is_file())
    return replace(line, start_up=few.cpu, num_tokens=shards.manifest.counts.num_tokens, num_bytes=num_bytes)


def side(bench: Bench, kind: str, rows: Path, place: Path, **settings: Any) -> tuple[Line, dict[str, Any]]:
    place.mkdir(parents=True, exist_ok=True)
    told = {"rows": str(rows), "model": str(bench.model), "out": str(place), "max_length": bench.max_length, **settings}
    (place / "settings.json").write_text(json.dumps(told))
    command = [sys.executable, str(HERE / "pack_sides.py"), kind, str(place / "settings.json")]
    return measured(kind, command, path=bench.axolotl if kind == "axolotl" else None)


def peer(bench: Bench, kind: str, name: str) -> Line | None:
    place = bench.out(kind)
    try:
        few, _ = side(bench, kind, bench.few, place / "few")
        line, told = side(bench, kind, bench.rows, place / "all")
    except RuntimeError as error:
        return unmeasured(name, error)
    return replace(line, name=name, start_up=few.cpu, num_tokens=told["num_tokens"], num_bytes=told["num_bytes"])


def floor(bench: Bench, kind: str, name: str, *, packed: Path, **settings: Any) -> Line | None:
    place = bench.out(f"{kind}-{settings.get('engine', '')}")
    try:
        _, told = side(bench, kind, bench.rows, place, set=str(packed), **settings)
    except RuntimeError as error:
        return unmeasured(name, error)
    if not told.get("equal", True):
        return unmeasured(name, RuntimeError("it gives other ids"))
    sizes = {key: told[key] for key in ("num_tokens", "num_bytes") if key in told}
    load = told.get("load", {"cpu": 0.0, "wall": 0.0})
    return Line(name, told["cpu"], told["wall"], load=(load["cpu"], load["wall"]), **sizes)


def unmeasured(name: str, error: RuntimeError) -> None:
    print(f"\nNot measured: {name}: {str(error).strip().splitlines()[-1]}")


def table(bench: Bench) -> None:
    """Print all lines of one tokenizer, then the ratios that are asked for."""
    print(f"\n### {bench.model.name}")
    lines: dict[str, Line | None] = {
        "auto": ours(bench, "auto"),
        "reference": ours(bench, "reference", "--tokenizer-engine", "reference"),
        "once": ours(bench, "as-rendered", "--history", "as-rendered"),
    }
    if lines["once"] is not None and lines["auto"] is not None and lines["once"].num_tokens == lines["auto"].num_tokens:
        # Only where the template rewrites history is there more than one sample a conversation.
        del lines["once"]
    lines["trl"] = peer(bench, "trl", "TRL 1.16: its trainer until the first step")
    if bench.axolotl is not None:
        lines["axolotl"] = peer(bench, "axolotl", "Axolotl 0.19: preprocess")
    packed = bench.folder / f"{bench.model.name}-auto" / "set"
    lines["bare"] = floor(bench, "encode", "bare `tokenizers`, text rendered", packed=packed, engine="tokenizers")
    engines = [
        floor(bench, "encode", f"floor: {engine} encode", packed=packed, engine=engine)
        for engine in ("gigatoken", "fastokens")
    ]
    exact = [line for line in engines if line is not None]
    lines["parse"] = floor(bench, "parse", "floor: pydantic parse", packed=packed)
    lines["encode"] = min(exact, key=lambda line: line.cpu, default=lines["bare"])
    lines["write"] = floor(bench, "write", "floor: Parquet write", packed=packed)
    print_lines({kind: line for kind, line in lines.items() if line is not None}, engines=exact)
    print(rendering(bench))


def rendering(bench: Bench) -> str:
    """What the text of a conversation costs by plan, alone in a process."""
    _, told = side(bench, "render", bench.rows, bench.out("render"))
    each, again = (told[key] / told["num_rows"] * 1e6 for key in ("cpu", "again"))
    by_plan = f"{told['num_planned']:,} of {told['num_rows']:,} plain chats by plan"
    return f"\nRendering {by_plan}: {each:.1f} µs a conversation with the making of the plans, {again:.1f} without."


def print_lines(lines: dict[str, Line], *, engines: list[Line]) -> None:
    floors = [lines[kind] for kind in ("parse", "encode", "write")]
    total = Line("the three floors together", sum(line.cpu for line in floors), sum(line.wall for line in floors))
    cpu, wall = min((line.cpu + line.load[0], line.wall + line.load[1]) for line in engines or [lines["encode"]])
    loaded = Line(
        "floors with an engine's loading",
        total.cpu - lines["encode"].cpu + cpu,
        total.wall - lines["encode"].wall + wall,
    )
    print("\n| | CPU s | start-up | work | wall s | tokens | M tok / CPU s | B / token | peak MB | work, × ours |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for line in [*lines.values(), total, loaded]:
        print(row_of(line, than=lines["auto"]))
    print(verdicts(lines, floors=total, loaded=loaded))


def row_of(line: Line, *, than: Line) -> str:
    rate = f"{line.num_tokens / line.work / 1e6:.2f}" if line.num_tokens else ""
    each = f"{line.num_bytes / line.num_tokens:.2f}" if line.num_bytes and line.num_tokens else ""
    start_up, peak = (f"{line.start_up:.2f}" if line.start_up else ""), (f"{line.peak:,.0f}" if line.peak else "")
    tokens = f"{line.num_tokens:,}" if line.num_tokens else ""
    cells = (f"{line.cpu:.2f}", start_up, f"{line.work:.2f}", f"{line.wall:.1f}", tokens, rate, each, peak)
    return f"| {line.name} | {' | '.join(cells)} | {line.work / than.work:.2f} |"


def verdicts(lines: dict[str, Line], *, floors: Line, loaded: Line) -> str:
    """The ratios, work against work; the peers make one sample a conversation, and stand beside ours that does."""
    auto = lines["auto"]
    same = lines.get("once", auto)
    said = [
        f"{kind}: {lines[kind].work / same.work:.1f} × {same.name} (with start-up {lines[kind].cpu / same.cpu:.1f} ×)"
        for kind in ("trl", "axolotl")
        if kind in lines
    ]
    said.append(f"the floors are {floors.cpu / auto.work:.2f} of {auto.name}, with the engine's loading")
    said[-1] += f" {loaded.cpu / auto.work:.2f}"
    if same is auto:  # else ours, and so the floors, are of more samples than the peers make
        said += [f"{kind}: {lines[kind].work / loaded.cpu:.0f} x those" for kind in ("trl", "axolotl") if kind in lines]
    if "bare" in lines:
        bare = lines["bare"].cpu
        said.append(f"bare tokenizers {bare / auto.work:.1f} × {auto.name}")
        said.append(f"{lines['reference'].name} has {bare / lines['reference'].work:.2f} of the bare encode's speed")
    return "\n" + "; ".join(said) + "."


def with_config(model: Path, folder: Path) -> Path:
    """The model's directory, with the file that Axolotl cannot do without where it has none."""
    if (model / "config.json").exists():
        return model
    place = folder / f"with config {model.name}" / model.name
    shutil.copytree(model, place)
    (place / "config.json").write_text('{"model_type": "llama"}', encoding="ascii")
    return place


def in_chatml(model: Path, folder: Path) -> Path:
    """The same tokenizer with the plainest template: what every side makes of it has the same ids."""
    place = folder / f"{model.name} in ChatML"
    shutil.copytree(model, place)
    (place / "chat_template.jinja").unlink(missing_ok=True)
    config = json.loads((place / "tokenizer_config.json").read_text(encoding="utf-8"))
    prompt = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    config["chat_template"] = f"{{% for message in messages %}}{CHATML_TURN}{{% endfor %}}{prompt}"
    (place / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return place


def default_models(folder: Path) -> list[Path]:
    corpus = CORPUS / "models"
    if not corpus.exists():
        return [SAMPLES / "model"]
    return [corpus / "smollm2-135m-instruct", in_chatml(corpus / "qwen3", folder), corpus / "qwen3"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--model", type=Path, action="append", help="model directory; repeatable")
    parser.add_argument("--max-length", type=int, default=32_768)
    parser.add_argument("--axolotl", type=Path, help="directory that holds Axolotl")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows, few = folder / "chats.jsonl", folder / "few.jsonl"
        models = options.model or default_models(folder)
        control = {token for model in models for token in load_model(str(model)).control_tokens}
        for path, count in ((rows, options.rows), (few, START_UP_ROWS)):
            with path.open("wb") as file:
                file.writelines(plain_rows(count, without=control))
        print(f"{options.rows:,} conversations, {rows.stat().st_size:,} bytes, --max-length {options.max_length}")
        for model in models:
            table(Bench(folder, with_config(model.resolve(), folder), rows, few, options.max_length, options.axolotl))


if __name__ == "__main__":
    main()

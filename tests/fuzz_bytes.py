"""A fuzzer over the bytes of a file, guided by what of sftprep they run: rows in = good + bad, no crash, no hang.

python -m tests.fuzz_bytes --seconds 1800 --keep folder

The first three bytes of an input choose the file's name, the format, and whether the outputs are written too, by blocks
of a few bytes that are dealt to several checkers as to worker processes; the rest is the file. It starts from the
samples. An input that fails is kept in the folder, and is run again when its name is given as the last argument. Runs
until the seconds are over, then prints how many inputs were run.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["sftprep"]):
    # Only what is imported here is followed.
    from tests.prepare.test_validate_fuzz import SEEDS, TOKENS, check, check_outputs

NAMES = ["f.jsonl", "f.json", "f", "f.gz", "f.zst", "f.parquet"]
FORMATS = [None, None, "openai", "sharegpt", "alpaca", "prompt-response"]
OUTPUTS_EVERY = 16
MAX_BYTES = 8192
MEMORY = Path("/dev/shm")


def run(data: bytes, folder: Path) -> None:
    """One input."""
    if len(data) < 3:
        return
    name, row_format = NAMES[data[0] % len(NAMES)], FORMATS[data[1] % len(FORMATS)]
    judge = check_outputs if data[2] % OUTPUTS_EVERY == 1 else check
    judge(folder / name, data[3:], row_format)


def run_or_keep(data: bytes, folder: Path, keep: Path) -> None:
    """The same; the fuzzer itself keeps what ends the process or takes too long, and nothing that raises."""
    try:
        run(data, folder)
    except BaseException:
        kept = keep / f"raises-{hashlib.sha1(data).hexdigest()}"
        kept.write_bytes(data)
        sys.stderr.write(f"{kept} fails\n")
        raise


def write_seeds(folder: Path) -> None:
    """The samples, each under the name that it would have."""
    for number, seed in enumerate(SEEDS):
        if len(seed) < MAX_BYTES:
            (folder / f"seed-{number}").write_bytes(bytes([2, 0, number % 16 == 1]) + seed)


def write_words(path: Path) -> None:
    """What is put into inputs as a whole, in the fuzzer's own notation."""
    lines = ("".join(f"\\x{byte:02x}" for byte in token) for token in TOKENS)
    path.write_text("".join(f'"{line}"\n' for line in lines), encoding="ascii")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--keep", type=Path, default=Path(tempfile.gettempdir()), help="where a failing input is kept")
    parser.add_argument("input", type=Path, nargs="?", help="run this input alone")
    options = parser.parse_args()
    # Each input is a file: in memory, where there is such a place.
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as work:
        rows, corpus, words = Path(work) / "rows", Path(work) / "corpus", Path(work) / "words"
        rows.mkdir()
        corpus.mkdir()
        write_seeds(corpus)
        write_words(words)
        limits = [f"-max_total_time={options.seconds}", "-timeout=30", "-rss_limit_mb=4096", f"-max_len={MAX_BYTES}"]
        places = [f"-dict={words}", f"-artifact_prefix={options.keep}/", str(options.input or corpus)]
        # The fuzzer ends its process at once, so the folder is removed by its parent.
        child = multiprocessing.get_context("fork").Process(target=fuzz, args=([*limits, *places], rows, options.keep))
        child.start()
        child.join()
    sys.exit(child.exitcode)


def fuzz(options: list[str], rows: Path, keep: Path) -> None:
    """Run until the time is over or an input fails."""
    atheris.Setup([sys.argv[0], *options], lambda data: run_or_keep(data, rows, keep))
    atheris.Fuzz()


if __name__ == "__main__":
    main()

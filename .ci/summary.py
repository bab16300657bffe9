"""Add up the test reports of a run, and fail it where the corpus is present and a test that reads it was skipped.

python .ci/summary.py DIRECTORY_WITH_JUNIT_XML
"""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parent.parent


def corpus_tests() -> set[tuple[str, str]]:
    """(class name, test name) as a JUnit report writes them, of every test marked `corpus`."""
    # The configuration is quiet already; quieter than that, pytest prints counts instead of names.
    select = ["-m", "corpus and not gpu and not network", "--collect-only"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *select], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode not in {0, 5}:
        sys.exit(done.stdout + done.stderr)
    ids = [line.split("::", 1) for line in done.stdout.splitlines() if "::" in line]
    return {(file.removesuffix(".py").replace("/", "."), name) for file, name in ids}


def outcome(case: ElementTree.Element) -> str:
    """What became of one test."""
    kinds = {child.tag for child in case}
    return "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"


def main() -> None:
    """Print the closing line; exit 1 for a failure, for no test at all, or for a corpus test that did not run."""
    cases = [case for file in Path(sys.argv[1]).glob("*.xml") for case in ElementTree.parse(file).iter("testcase")]
    results = {(case.get("classname", ""), case.get("name", "")): outcome(case) for case in cases}
    counts = Counter(results.values())
    complaints = []
    if (ROOT / ".." / "shared" / "corpus").is_dir():
        wanted = corpus_tests()
        complaints = sorted("::".join(test) for test in wanted if results.get(test) != "passed")
        if not wanted:
            complaints = ["no test is marked corpus"]
        print(f"corpus tests: {len(wanted)}, of which not passed: {len(complaints)}")
    for name in complaints:
        print(f"not run on the corpus: {name}")
    print(f"{counts['passed']} passed, {counts['failed']} failed, {counts['skipped']} skipped")
    if complaints or counts["failed"] or not counts["passed"]:
        sys.exit(1)


if __name__ == "__main__":
    main()

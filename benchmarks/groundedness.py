"""How much of what a weak model makes up `ungrounded` finds: its answers to real passages, labelled before the look.

    python benchmarks/groundedness.py path/to/SmolLM2-135M-Instruct ../shared/corpus/chat --rows 26

The labels (tests/quality/weak_answers.jsonl) name rows of the corpus, not their texts. The model answers them again,
greedily; an answer that is not the one that was read (its sha256 differs: another library, another machine) has no
label and is counted apart. `ask` chooses one of two requests about the row's first answer as the passage; null: the
row's own prompt.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sftprep.config.quality import QualityConfig
from sftprep.prepare.validate import read_conversations
from sftprep.stages.dialogue import row_text
from sftprep.stages.groundedness import gives_context, unsupported

LABELS = Path(__file__).resolve().parent.parent / "tests" / "quality" / "weak_answers.jsonl"
ASKS = (
    "Summarize the following text in two sentences:\n\n{}",
    "Answer from the following text alone: what are the most important facts in it?\n\nText: {}",
)
MAX_NEW_TOKENS = 60


def prompt_of(entry: dict[str, Any], corpus: Path) -> str:
    for row in read_conversations(corpus / entry["file"], name=entry["file"]):
        if row.address.line == entry["line"] and row.conversation is not None:
            first = row_text(row.conversation).answers[0]
            return first.prompt if entry["ask"] is None else ASKS[entry["ask"]].format(first.text)
    raise SystemExit(f"{entry['file']}:{entry['line']} is not there")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--rows", type=int, default=26)
    options = parser.parse_args()
    least = QualityConfig(files=(LABELS,)).unsupported_share
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = AutoModelForCausalLM.from_pretrained(options.model).eval()
    counts: Counter[str] = Counter()
    for entry in map(json.loads, LABELS.read_text(encoding="utf-8").splitlines()[: options.rows]):
        prompt = prompt_of(entry, options.corpus)
        chat = [{"role": "user", "content": prompt}]
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=False)
        with torch.no_grad():
            new = model.generate(ids, max_new_tokens=MAX_NEW_TOKENS, do_sample=False, pad_token_id=0)
        answer = tokenizer.decode(new[0, ids.shape[1] :], skip_special_tokens=True).strip()
        if hashlib.sha256(answer.encode()).hexdigest() != entry["answer_sha256"]:
            counts["another answer"] += 1
            continue
        is_found = (
            gives_context(prompt, tool_results="") and unsupported(answer, context=prompt, by_words=True) >= least
        )
        counts[("found" if is_found else "passed") + (", unsupported" if entry["ungrounded"] else ", fine")] += 1
    for name, count in sorted(counts.items()):
        print(f"{name:<24} {count:>3}")


if __name__ == "__main__":
    main()

"""What Axolotl and LLaMA-Factory make of the plain samples with their own code, and what `sftprep audit --diff` says.

python benchmarks/prepared_elsewhere.py PYTHON

PYTHON is an interpreter that can import `axolotl.common.datasets` and `llamafactory.data`; both can be installed with
`pip install --no-deps` beside what they then ask for. TRL is compared by tests/test_interchange.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from sftprep.config.pack import PackConfig
from sftprep.prepare.diff import diff
from sftprep.prepare.pack import pack

SAMPLES = Path(__file__).resolve().parent.parent / "data_samples"
MODEL = str(SAMPLES / "model")

AXOLOTL = """
import json, sys
from axolotl.cli.args import PreprocessCliArgs
from axolotl.cli.config import load_cfg
from axolotl.common.datasets import load_datasets

if __name__ == "__main__":
    cfg = load_cfg(sys.argv[1])
    cfg.is_preprocess = True
    load_datasets(cfg=cfg, cli_args=PreprocessCliArgs())
"""
LLAMA_FACTORY = """
import json, sys
from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
from llamafactory.hparams import get_train_args
from transformers import AutoTokenizer

model, data, training, *_ = get_train_args(json.load(open(sys.argv[1])))
tokenizer = AutoTokenizer.from_pretrained(model.model_name_or_path)
template = get_template_and_fix_tokenizer(tokenizer, data)
get_dataset(template, model, data, training, stage="sft", tokenizer=tokenizer)
"""
AXOLOTL_RUNS = {
    "turn": {"train_on_eos": "turn"},
    "turn, packed": {"train_on_eos": "turn", "sample_packing": True, "pad_to_sequence_len": True},
    "last": {"train_on_eos": "last"},
}
LLAMA_FACTORY_RUNS = {
    "plain": {},
    "packing": {"packing": True},
    "neat_packing": {"packing": True, "neat_packing": True},
    "mask_history": {"mask_history": True},
    "train_on_prompt": {"train_on_prompt": True},
}


def plain_rows() -> list[dict[str, object]]:
    rows = [json.loads(line) for line in (SAMPLES / "good" / "openai.jsonl").read_text(encoding="utf-8").splitlines()]
    plain = [all(set(m) == {"role", "content"} and isinstance(m["content"], str) for m in r["messages"]) for r in rows]
    return [{"messages": row["messages"]} for row, kept in zip(rows, plain, strict=True) if kept]


def axolotl_config(rows: Path, out: Path, settings: dict[str, object]) -> dict[str, object]:
    own = {key: value for key, value in settings.items() if key == "train_on_eos"}
    dataset = {"path": str(rows), "ds_type": "json", "type": "chat_template", "roles_to_train": ["assistant"], **own}
    return {
        "base_model": MODEL,
        "datasets": [dataset],
        "chat_template": "tokenizer_default",
        "sequence_len": 512,
        "dataset_prepared_path": str(out),
        "output_dir": str(out.parent / "run"),
        "micro_batch_size": 1,
        "gradient_accumulation_steps": 1,
        "num_epochs": 1,
        "learning_rate": 1e-4,
        "optimizer": "adamw_torch",
        "val_set_size": 0,
        "special_tokens": {"pad_token": "<|endoftext|>"},
        **{key: value for key, value in settings.items() if key not in own},
    }


def llama_factory_config(rows: Path, out: Path, settings: dict[str, object]) -> dict[str, object]:
    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    entry = {"file_name": rows.name, "formatting": "sharegpt", "columns": {"messages": "messages"}}
    described = {"chats": {**entry, "tags": {**tags, "system_tag": "system"}}}
    (rows.parent / "dataset_info.json").write_text(json.dumps(described))
    return {
        "stage": "sft",
        "do_train": True,
        "model_name_or_path": MODEL,
        "dataset_dir": str(rows.parent),
        "dataset": "chats",
        "template": "chatml",
        "cutoff_len": 512,
        "tokenized_path": str(out),
        "output_dir": str(out.parent / "run"),
        "finetuning_type": "full",
        "overwrite_cache": True,
        "report_to": "none",
        "use_cpu": True,
        **settings,
    }


def made(python: str, program: str, config: dict[str, object], folder: Path) -> None:
    # JSON is YAML too, which is what Axolotl reads.
    (folder / "config.yml").write_text(json.dumps(config))
    (folder / "make.py").write_text(program)
    environment = {**os.environ, "DISABLE_VERSION_CHECK": "1", "AXOLOTL_DO_NOT_TRACK": "1"}
    command = [python, str(folder / "make.py"), str(folder / "config.yml")]
    # LLaMA-Factory exits by itself where it has saved a dataset; what counts is whether there is one.
    subprocess.run(command, cwd=folder, env=environment, capture_output=True, check=False)


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = folder / "chats.jsonl"
        rows.write_text("".join(json.dumps(row) + "\n" for row in plain_rows()))
        pack(PackConfig(files=(rows,), model=MODEL, out=folder / "set", max_length=512))
        for trainer, program, configure, runs in (
            ("Axolotl", AXOLOTL, axolotl_config, AXOLOTL_RUNS),
            ("LLaMA-Factory", LLAMA_FACTORY, llama_factory_config, LLAMA_FACTORY_RUNS),
        ):
            for number, (run, settings) in enumerate(runs.items()):
                out = folder / f"{trainer}-{number}"
                made(sys.argv[1], program, configure(rows, out, settings), folder)
                report = diff(folder / "set", out)
                rules = ", ".join(f"{r.num_documents} x {r.rule} ({r.trained_by})" for r in report.rules) or "same"
                print(f"{trainer}, {run}: {report.num_identical} of {report.left.num_documents} identical; {rules}")


if __name__ == "__main__":
    main()

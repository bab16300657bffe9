"""One side of benchmarks/pack.py, in a process of its own: another preparation, or a floor that none can go below.

    python benchmarks/pack_sides.py trl|axolotl|parse|render|encode|write SETTINGS.json

A preparation is measured from outside, whole; a floor measures its own call and prints what it found as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sftprep.engines.model import ModelFiles
    from sftprep.engines.reference import ReferenceEngine

Settings = Mapping[str, Any]

CHATML_TURN = "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
TAGGED_TURN = (
    "{{'<|im_start|>' + message['role'] + '\n'}}{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}"
)


def trl(settings: Settings) -> dict[str, Any]:
    """TRL's trainer up to its first step: that is where it prepares. The model is as small as one can be."""
    from datasets import disable_progress_bars, load_dataset
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer

    disable_progress_bars()
    tokenizer = AutoTokenizer.from_pretrained(settings["model"])
    tokenizer.chat_template = known_to_trl(tokenizer.chat_template)
    size = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **size))
    arguments = SFTConfig(
        output_dir=settings["out"] + "/run",
        assistant_only_loss=True,
        packing=True,
        packing_strategy="bfd",
        max_length=settings["max_length"],
        report_to="none",
        use_cpu=True,
        bf16=False,
    )
    rows = load_dataset("json", data_files=settings["rows"], split="train", cache_dir=settings["out"] + "/cache")
    trainer = SFTTrainer(model=model, args=arguments, train_dataset=rows, processing_class=tokenizer)
    final = [file["filename"] for file in trainer.train_dataset.cache_files]
    lengths = trainer.train_dataset.with_format("arrow")[:]["seq_lengths"]
    return {
        "num_tokens": int(sum(lengths.combine_chunks().flatten().to_numpy())),
        "num_bytes": sum(Path(name).stat().st_size for name in final),
    }


def known_to_trl(template: str) -> str:
    """TRL swaps in the tagged forms of templates that it ships, and refuses any other that has no tags of its own."""
    import trl

    if "ns.last_query_index" in template:
        # Qwen3's as TRL has it: the same text for contents that are strings. Its tagged form keeps the reasoning tags
        # of earlier turns, so that there are more tokens.
        return (Path(trl.__file__).parent / "chat_templates" / "qwen3.jinja").read_text(encoding="utf-8")
    return template.replace(CHATML_TURN, TAGGED_TURN)


def axolotl(settings: Settings) -> dict[str, Any]:
    """What `axolotl preprocess` does, without its console."""
    from axolotl.cli.args import PreprocessCliArgs
    from axolotl.cli.config import load_cfg
    from axolotl.common.datasets import load_datasets

    dataset = {
        "path": settings["rows"],
        "ds_type": "json",
        "type": "chat_template",
        "roles_to_train": ["assistant"],
        "train_on_eos": "turn",
    }
    config = {
        "base_model": settings["model"],
        "datasets": [dataset],
        "chat_template": "tokenizer_default",
        "sequence_len": settings["max_length"],
        "sample_packing": True,
        "pad_to_sequence_len": True,
        "dataset_prepared_path": settings["out"] + "/prepared",
        "output_dir": settings["out"] + "/run",
        "dataset_processes": 1,
        "micro_batch_size": 1,
        "gradient_accumulation_steps": 1,
        "num_epochs": 1,
        "learning_rate": 1e-4,
        "optimizer": "adamw_torch",
        "val_set_size": 0,
    }
    place = Path(settings["out"]) / "config.yml"
    place.write_text(json.dumps(config))  # JSON is YAML too
    cfg = load_cfg(str(place))
    cfg.is_preprocess = True
    prepared = load_datasets(cfg=cfg, cli_args=PreprocessCliArgs()).train_dataset
    return {"num_tokens": sum(len(ids) for ids in prepared["input_ids"]), "num_bytes": sizes(settings["out"])}


def sizes(folder: str) -> int:
    return sum(path.stat().st_size for path in Path(folder).rglob("*.arrow"))


def cpu_of(work: Callable[[], Any]) -> tuple[dict[str, float], Any]:
    """One cold pass."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return {"cpu": time.process_time() - cpu, "wall": time.perf_counter() - wall}, result


def parse(settings: Settings) -> dict[str, Any]:
    """Read and parse each row with pydantic, contents as they come."""
    from pydantic import BaseModel

    class Row(BaseModel):
        messages: list[dict[str, Any]]

    def work() -> int:
        with Path(settings["rows"]).open("rb") as file:
            return sum(1 for row in map(Row.model_validate_json, file) if row.messages)

    return cpu_of(work)[0]


def render(settings: Settings) -> dict[str, Any]:
    """Join the text of each plain chat by a plan: with the making of the plans, and once more without."""
    from sftprep.config.pack import PackConfig
    from sftprep.engines.load import load_model
    from sftprep.prepare.input_rows import InputRows
    from sftprep.prepare.plans import PlanBook
    from sftprep.records.plain_lines import plain_lines
    from sftprep.templates.policy import RenderPolicy

    with Path(settings["rows"]).open("rb") as file:
        chats = [chat for chat in plain_lines(list(file)) if chat is not None]
    chunks = []
    for first in range(0, len(chats), 1000):
        chunks.append(InputRows("rows"))
        some = chats[first : first + 1000]
        chunks[-1].extend(0, range(1 + first, 1 + first + len(some)), [1] * len(some), some)
    config = PackConfig(
        files=(Path(settings["rows"]),),
        model=settings["model"],
        out=Path(settings["out"]) / "none",
        max_length=settings["max_length"],
    )
    book = PlanBook(load_model(settings["model"]), config, RenderPolicy())

    def work() -> int:
        num_planned = 0
        for rows in chunks:
            planned = [found for found in book.replay_all(rows) if isinstance(found, tuple)]
            texts = [b"".join(sample.take(values)) for plan, values in planned for sample in plan.samples]
            num_planned += len(planned) if texts else 0
        return num_planned

    cost, num_planned = cpu_of(work)
    again, _ = cpu_of(work)
    return {**cost, "again": again["cpu"], "num_rows": len(chats), "num_planned": num_planned}


def documents(settings: Settings) -> list[list[int]]:
    """The ids of each document of a set."""
    import pyarrow.parquet as pq

    found = []
    for path in sorted((Path(settings["set"]) / "shards").glob("*.parquet")):
        for batch in pq.ParquetFile(path).iter_batches(64, columns=["input_ids", "seq_lengths"]):
            rows = zip(batch["input_ids"].to_pylist(), batch["seq_lengths"].to_pylist(), strict=True)
            for ids, lengths in rows:
                at = 0
                for length in lengths:
                    found.append(ids[at : at + length])
                    at += length
    return found


def encode(settings: Settings) -> dict[str, Any]:
    """Encode the texts of the documents of a set, 1,000 a call, and compare the ids with the set's."""
    import numpy as np
    from tokenizers import Tokenizer

    from sftprep.engines.load import load_model
    from sftprep.engines.reference import ReferenceEngine

    model = load_model(settings["model"])
    reference = Tokenizer.from_str(model.tokenizer_json)
    expected = documents(settings)
    texts = reference.decode_batch(expected, skip_special_tokens=False)
    batches = [texts[first : first + 1000] for first in range(0, len(texts), 1000)]
    own = ReferenceEngine(model.tokenizer_json)
    import_module("sftprep.engines.fast")  # of a fast engine only the loading is measured
    load, call = cpu_of(lambda: ENGINES[settings["engine"]](model, own))
    cost, found = cpu_of(lambda: [call(batch) for batch in batches])
    flat = np.concatenate([ids for batch in found for ids in batch])
    same = np.array_equal(flat, np.concatenate([np.asarray(ids, np.int32) for ids in expected]))
    return {**cost, "load": load, "num_tokens": len(flat), "equal": bool(same)}


def _tokenizers(model: ModelFiles, _: ReferenceEngine) -> Callable[[list[str]], list[Any]]:
    import numpy as np
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(model.tokenizer_json)

    def call(texts: list[str]) -> list[Any]:
        encoded = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(one.ids, np.int32) for one in encoded]

    return call


def _gigatoken(model: ModelFiles, _: ReferenceEngine) -> Callable[[list[str]], list[Any]]:
    from sftprep.engines.fast import GigatokenBatch

    engine = GigatokenBatch(model.tokenizer_json)
    return lambda texts: [engine.encode_batch([text.encode() for text in texts]).ids]


def _fastokens(model: ModelFiles, reference: ReferenceEngine) -> Callable[[list[str]], list[Any]]:
    from sftprep.engines.fast import FastokensBatch

    engine = FastokensBatch(model.tokenizer_json, reference, num_ids=model.vocab_size)
    return lambda texts: [engine.encode_batch([text.encode() for text in texts]).ids]


ENGINES: dict[str, Callable[[ModelFiles, ReferenceEngine], Callable[[list[str]], list[Any]]]] = {
    "tokenizers": _tokenizers,
    "gigatoken": _gigatoken,
    "fastokens": _fastokens,
}


def write(settings: Settings) -> dict[str, Any]:
    """Write ids, masks and lengths of a set again, encoded and compressed as ours are."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from sftprep.shards.part import parquet_writer

    columns = ["input_ids", "assistant_masks", "seq_lengths"]
    paths = sorted((Path(settings["set"]) / "shards").glob("*.parquet"))
    batches = [batch for path in paths for batch in pq.ParquetFile(path).iter_batches(512, columns=columns)]
    place = Path(settings["out"]) / "floor.parquet"

    def work() -> None:
        with place.open("wb") as sink, parquet_writer(sink, batches[0].schema) as writer:
            for batch in batches:
                writer.write_batch(pa.record_batch(batch.columns, schema=batches[0].schema))

    return {**cpu_of(work)[0], "num_bytes": place.stat().st_size}


if __name__ == "__main__":
    SIDES: dict[str, Callable[[Settings], dict[str, Any]]] = {
        "trl": trl,
        "axolotl": axolotl,
        "parse": parse,
        "render": render,
        "encode": encode,
        "write": write,
    }
    print(json.dumps(SIDES[sys.argv[1]](json.loads(Path(sys.argv[2]).read_text()))))

"""Options of `sftprep train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from sftprep.config.places import CACHE_DIR, CACHE_GB, LocalPath, ModelName, Place, refuse_inside


def _parted(value: Any) -> Any:
    """Names that are joined by commas, apart."""
    return [part for text in value for part in text.split(",")] if isinstance(value, list | tuple) else value


def _with_a_name(out: Path) -> Path:
    """A run works beside its output, under the output's name and more: `.` has none."""
    found = out if out.name else out.resolve()
    if not found.name:
        raise ValueError("the root of a file system cannot become a model's directory")
    return found


class TrainConfig(BaseModel):
    """Everything that decides a training run. Each field's description is the help text of its option."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)

    data: Place = Field(description="The shard set that `sftprep pack` wrote, or its URL (s3://…, extra `remote`).")
    model: ModelName = Field(description="A model directory, a hub id, a GGUF file, or a directory with one.")
    out: Annotated[LocalPath, AfterValidator(_with_a_name)] = Field(
        description="Where the trained model is written; it appears when it is whole."
    )
    init: Literal["pretrained", "random"] = Field(
        default="pretrained", description="`random` builds the model from its config.json with seeded random weights."
    )

    epochs: float = Field(
        default=1.0, gt=0, allow_inf_nan=False, description="Passes over the data; fractions are allowed."
    )
    max_steps: int | None = Field(default=None, ge=1, description="Stop after this many optimizer steps.")
    batch_size: int = Field(default=1, ge=1, description="Packs (or documents, unpacked) in one forward pass.")
    grad_accum: int = Field(default=8, ge=1, description="Forward passes in one optimizer step.")

    lr: float = Field(default=2e-5, gt=0, allow_inf_nan=False, description="Peak learning rate.")
    warmup: float = Field(
        default=0.03, ge=0, allow_inf_nan=False, description="Below 1 a share of all steps, else a number of steps."
    )
    schedule: Literal["cosine", "linear", "constant"] = Field(default="cosine", description="After the warm-up.")
    min_lr_ratio: float = Field(default=0.1, ge=0, le=1, description="Last learning rate, as a share of --lr.")
    weight_decay: float = Field(
        default=0.01, ge=0, allow_inf_nan=False, description="On matrices only, not on norms and biases."
    )
    beta1: float = Field(default=0.9, ge=0, lt=1, description="AdamW's first decay rate.")
    beta2: float = Field(default=0.999, ge=0, lt=1, description="AdamW's second decay rate.")
    max_grad_norm: float = Field(default=1.0, gt=0, description="Gradients are scaled down to this norm.")
    loss: Literal["token", "sample", "turn"] = Field(
        default="token", description="What counts alike in a step: trained tokens, documents, or trained messages."
    )
    seed: int = Field(default=0, ge=0, lt=2**63, description="Of the data order, dropout and random weights.")

    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="Where to train.")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto",
        description="Compute type; weights and optimizer state stay float32.",
    )
    attention: Literal["auto", "segments", "unpack"] = Field(
        default="auto",
        description="`segments` isolates packed documents in attention, `unpack` gives each a row; "
        "auto unpacks where the self-test fails.",
    )
    lora_rank: int = Field(
        default=0, ge=0, description="Train adapters of this rank on all linear layers; 0 trains the whole model."
    )
    lora_alpha: float | None = Field(
        default=None,
        gt=0,
        allow_inf_nan=False,
        description="Adapters count alpha / rank (default: alpha is twice the rank).",
    )
    lora_dropout: float = Field(default=0.0, ge=0, lt=1, description="Dropout before the adapters.")
    lora_embeddings: bool = Field(
        default=False, description="With LoRA, train the embeddings too; only the merged model is then written."
    )
    gradient_checkpointing: bool = Field(default=False, description="Less memory, about a third more time.")
    keep_products: bool = Field(
        default=False,
        description="As --gradient-checkpointing, but what matrix products and attention give is kept: less memory, "
        "little more time.",
    )
    keep_narrow: bool = Field(
        default=False,
        description="As --keep-products, but of two products that widen a row alike, as in gated feed-forward layers, "
        "one is computed again: half of what they take, a tenth more work.",
    )
    compile_layers: bool = Field(
        default=False,
        description="Compile the layers, once for all packs, which are filled up to --max-length for it.",
    )
    deterministic: bool = Field(
        default=False,
        description="The same bits in every run on the same GPU, at some cost in time; a CPU gives them anyway.",
    )
    threads: int | None = Field(default=None, ge=1, description="CPU threads (default: torch's own choice).")

    eval_shards: Place | None = Field(
        default=None, description="A held-out shard set: its loss a trained token is measured, and the best step kept."
    )
    eval_every: int = Field(default=100, ge=1, description="Steps between two measurements; the last step always is.")
    eval_suites: tuple[str, ...] = Field(
        default=(),
        description="A suite, as for sftprep evaluate: the model answers a sample of its cases; again for more.",
    )
    eval_cases: int = Field(default=8, ge=1, description="Cases of each suite in the sample, drawn by --seed.")
    keep_best: str | None = Field(
        default=None,
        description="The output is the best step's model by this metric, not the last one's: nll, or pass-rate, value, "
        "stops, repetition, each also of one suite, as in pass-rate.NAME. With --eval-shards alone, the best step's "
        "checkpoint by nll is kept beside the last model.",
    )
    stop_early: str | None = Field(
        default=None, description="End the run where this metric, one of the same, no longer gets better."
    )
    patience: int = Field(default=3, ge=1, description="Measurements in a row without a better one that end the run.")
    save_every: int | None = Field(default=None, ge=1, description="Write a checkpoint every so many steps.")
    keep_last: int = Field(default=2, ge=1, description="Checkpoints that are kept, beside the best one.")
    log_every: int = Field(default=10, ge=1, description="Print a line every so many steps where no bar is shown.")
    tag: str | None = Field(
        default=None,
        description="Tell the loss apart by this key of the rows too; their files must lie where they were packed.",
    )
    log_to: Annotated[tuple[Literal["tensorboard", "wandb"], ...], BeforeValidator(_parted)] = Field(
        default=(),
        description="Beside metrics.jsonl: tensorboard, wandb (extras of these names); repeatable, or with commas.",
    )
    cache_dir: LocalPath = Field(
        default=CACHE_DIR, description="Where shards of a URL are copied; shared by all processes here."
    )
    cache_gb: float = Field(
        default=CACHE_GB, gt=0, description="Gigabytes that the copies may take; the next shards to come are kept."
    )
    resume: bool = Field(default=False, description="Go on from the last checkpoint of an unfinished run.")
    overwrite: bool = Field(
        default=False, description="Replace the model directory at --out, once the new one is whole."
    )

    @model_validator(mode="after")
    def _apart(self) -> Self:
        refuse_inside({"--out": self.out}, {"DIR_OR_URL": self.data, "--eval-shards": self.eval_shards})
        return self

    @property
    def rows_per_step(self) -> int:
        """Rows of the shard set that one optimizer step takes."""
        return self.batch_size * self.grad_accum

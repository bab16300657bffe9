"""The report of a split: what went where, and the proof that nothing is in both."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field
from rich.console import Console

from sftprep.reports.wording import counted


class SplitReport(BaseModel):
    """The outcome of `sftprep split`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    out: str
    files: list[str]
    seed: int
    near_duplicate: float = Field(description="The similarity from which rows were kept together.")
    num_rows: int
    num_train: int
    num_eval: int
    num_asked: int = Field(description="Held-out rows that were asked for; whole clusters may leave fewer.")
    num_clusters: int = Field(description="Groups of rows that must stay together, single rows included.")
    largest_cluster: int = Field(description="Rows of the largest.")
    num_merged: int = Field(description="Pairs that the exact check found beyond the clusters, and that it joined.")
    num_leaks: int = Field(
        description="Pairs of a training and a held-out row whose prompts or conversations are near duplicates, by an "
        "exact comparison of every held-out row with every training row: always 0."
    )
    ngram: int = Field(description="Words of an n-gram: the held-out rows' 5th percentile length, 8 to 13.")
    num_overlapping: int = Field(
        description="Held-out rows that share at least one n-gram with training rows, as `validate --against` counts "
        "them: passages and set phrases in rows that are no near duplicates. They are told; with --no-overlap, others "
        "are held out in their place."
    )
    num_barred: int = Field(description="Rows that --no-overlap kept from being held out.")
    eval_by_file: dict[str, int] = Field(description="Held-out rows by input file.")


def print_split(report: SplitReport, console: Console) -> None:
    """What went where."""
    console.print(
        f"{report.out}: {counted(report.num_train, 'row')} in train.jsonl, {report.num_eval:,} in eval.jsonl "
        f"({report.num_asked:,} asked for)",
        style="bold",
        soft_wrap=True,
        markup=False,
    )
    console.print(
        f"{counted(report.num_clusters, 'cluster')}, the largest of {counted(report.largest_cluster, 'row')}; "
        f"exact check: {counted(report.num_leaks, 'near duplicate')} across the border "
        f"({report.num_merged:,} joined by it)",
        soft_wrap=True,
    )
    if report.num_overlapping:
        console.print(
            f"{counted(report.num_overlapping, 'held-out row shares', 'held-out rows share')} {report.ngram}-grams "
            "with training rows without being near duplicates: sftprep validate train.jsonl --against eval.jsonl "
            "lists them, --no-overlap holds out others",
            soft_wrap=True,
        )
    if report.num_barred:
        console.print(
            f"{counted(report.num_barred, 'row was', 'rows were')} not held out, for n-grams shared with other rows",
            soft_wrap=True,
        )

"""Options of ``evaluate`` and ``report``."""

from typing import Annotated, Literal

from pydantic import Field

from .base import POSITIONAL, CommandOptions, SavedStep


class EvaluateOptions(CommandOptions):
    """The model to measure, the data to measure it on, and where the numbers go."""

    source: str = Field(
        description="a model's folder, or the folder of a run that exported one",
        json_schema_extra=POSITIONAL,
    )
    output: str | None = Field(
        None,
        description="file to write; default evaluation.json, in the run's folder if there is one",
    )
    student: str | None = Field(None, description="which one of a run with several students")
    step: SavedStep | None = Field(
        None,
        description="instead of the export: the run's checkpoint after this step, or newest; the "
        "run may be under way",
    )
    teacher: str | None = Field(
        None, description="model to hold relations against; default the run's"
    )
    corpus: list[str] = Field(
        [], description="indexed corpora of held-out text; default the run's held-out ones"
    )
    num_sequences: int = Field(256, ge=1, description="held-out pairs to measure relations on")
    num_relation_heads: int | None = Field(
        None, ge=1, description="of the relation loss; default the run's, else 32"
    )
    task: str | None = Field(
        None, description="score a fine-tuned model on a GLUE, CLUE or NER task, as sst2"
    )
    data_dir: str | None = Field(None, description="folder of the task's files")
    dataset: str | None = Field(
        None, description="own table instead of a task: a TSV, CSV or JSON file, or a folder"
    )
    text_columns: list[str] | None = Field(
        None, description="the table's column of text, or two; default those of the fine-tuning"
    )
    label_column: str | None = Field(
        None, description="the table's column of classes or numbers; default the fine-tuning's"
    )
    word_column: int | None = Field(
        None, ge=1, description="column of words in a file of tagged words; default the tuning's"
    )
    tag_column: int | None = Field(
        None, ge=1, description="column of their tags; default the fine-tuning's"
    )
    split: Literal["train", "dev", "test"] = Field("dev", description="of the folder's files")
    max_length: int | None = Field(
        None, ge=8, description="longest held-out pair or sample; default the run's, else 128"
    )
    speed: bool = Field(True, description="measure latency and memory (--speed false: do not)")
    batch_sizes: list[Annotated[int, Field(ge=1)]] = Field(
        [1, 8, 32, 128], description="batches whose latency is measured"
    )
    length: int = Field(128, ge=1, description="tokens of each sequence in those batches")
    repeats: int = Field(10, ge=3, description="timed passes of each batch")
    use_cpu: bool = Field(False, description="stay on the CPU although there is a GPU")


class ReportOptions(CommandOptions):
    """The runs that a page shows, and the page."""

    runs: list[str] = Field(
        min_length=1,
        description="folders of runs, folders of such folders, or files that evaluate wrote",
        json_schema_extra=POSITIONAL,
    )
    output: str = Field("report.html", description="the page; a .json of the same name beside it")
    title: str | None = Field(None, description="the page's heading; default the runs' names")
    watch: int | None = Field(
        None,
        ge=1,
        description="write the page anew every so many seconds until all runs are over; a browser "
        "that has it open follows",
    )

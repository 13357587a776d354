"""The options of commands other than ``distill`` and ``sparsify``: one flat class for each.

Flags, help pages and checks follow from the fields (see `command_line`). ``distill`` and
``sparsify`` take a whole run instead, which `schema` declares.
"""

import os
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import Field, field_validator, model_validator
from pydantic_core.core_schema import ValidationInfo

from minimoe_dist.config.schema import Section

POSITIONAL: dict[str, Any] = {"positional": True}


class CommandOptions(Section):
    """Base of a command's options: frozen, no unknown keys, lists also as text with commas.

    A field with ``json_schema_extra=POSITIONAL`` takes words that stand without a flag, in the
    order of the fields; a list takes all that are left. A field ``recipe`` is what ``--config``
    names (for other commands, ``--config`` names a YAML file of these options), and a field
    ``overrides`` takes ``key.path=value`` and the flags of ``distill``.
    """

    @field_validator("*", mode="before")
    @classmethod
    def _list_of_text(cls, value: Any, info: ValidationInfo) -> Any:
        annotation = cls.model_fields[str(info.field_name)].annotation
        takes_list = any(get_origin(one) is list for one in (annotation, *get_args(annotation)))
        if takes_list and isinstance(value, str):
            return [part.strip() for part in value.split(",") if part.strip()]
        return value


class DemoOptions(CommandOptions):
    """Where the demo goes and how long it trains."""

    output_dir: str = Field("runs/demo", description="folder of corpus, run and export")
    steps: int | None = Field(None, ge=1, description="optimizer steps; default the recipe's")
    num_processes: int | None = Field(
        None, ge=1, description="processes to distil on; default 2 on CPUs, else one per GPU"
    )


class ExportOptions(CommandOptions):
    """What an export is made of, and what is put beside it."""

    source: str = Field(
        description="a model's folder, or the folder of a run that exported one",
        json_schema_extra=POSITIONAL,
    )
    output_dir: str = Field(description="the folder to write; an earlier export is replaced")
    student: str | None = Field(None, description="which one of a run with several students")
    onnx: bool = Field(False, description="also onnx/model.onnx, checked with onnxruntime")
    sentence_transformers: bool = Field(
        False, description="also the files with which sentence-transformers loads the folder"
    )
    pooling: Literal["mean", "cls", "max"] = Field(
        "mean", description="of token states to a sentence's embedding"
    )
    normalize: bool = Field(False, description="give sentence embeddings length 1")
    license: str | None = Field(
        None, description="of the model, for its card: an identifier of the Hugging Face hub"
    )
    language: list[str] = Field([], description="codes for the card, such as en,zh")


class EvaluateOptions(CommandOptions):
    """What is measured of a model, on what, and where the numbers go."""

    source: str = Field(
        description="a model's folder, or the folder of a run that exported one",
        json_schema_extra=POSITIONAL,
    )
    output: str | None = Field(
        None, description="file to write; default evaluation.json in the run's or model's folder"
    )
    student: str | None = Field(None, description="which one of a run with several students")
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
    split: Literal["train", "dev", "test"] = Field("dev", description="of the task's files")
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
    """Which runs a page shows."""

    runs: list[str] = Field(
        min_length=1,
        description="folders of runs, folders of such folders, or files that evaluate wrote",
        json_schema_extra=POSITIONAL,
    )
    output: str = Field("report.html", description="the page; a .json of the same name beside it")
    title: str | None = Field(None, description="the page's heading; default the runs' names")


class FinetuneOptions(CommandOptions):
    """A model, tasks or a table, and the grid of seeds, learning rates and batch sizes."""

    model_name_or_path: str = Field(
        min_length=1,
        description="teacher or student: a folder, package:NAME or hub name",
        json_schema_extra=POSITIONAL,
    )
    output_dir: str = Field(min_length=1, description="folder of results and of the best model")
    task: list[str] | None = Field(
        None, description="GLUE, CLUE and NER tasks by name, as sst2 or rte,mrpc,ner"
    )
    data_dir: str | None = Field(
        None, description="folder of the task's files, or of the folders of several tasks"
    )
    dataset: str | None = Field(
        None, description="own table instead of a task: a TSV, CSV or JSON file, or a folder"
    )
    dev: str | None = Field(None, description="dev file where dataset is a file")
    text_columns: list[str] | None = Field(
        None, description="the table's column of text, or two for pairs, as premise,hypothesis"
    )
    label_column: str | None = Field(None, description="the table's column of classes or numbers")
    regression: bool = Field(False, description="the table's labels are numbers to predict")
    strict: bool = Field(False, description="stop at a row that cannot be used")
    tokenizer_name_or_path: str | None = Field(None, description="default: the model's own")
    max_length: int = Field(128, ge=8, description="tokens of a sample with its special tokens")
    seeds: list[int] = Field([776], min_length=1, description="of heads, order and dropout")
    learning_rates: list[float] = Field([2e-5], min_length=1, description="peaks to try")
    batch_sizes: list[int] = Field([32], min_length=1, description="samples a step, all ranks'")
    grid: bool = Field(
        False, description="try 1e-5,2e-5,3e-5 with batches of 16,32 where these are not given"
    )
    num_train_epochs: int | None = Field(
        None, ge=1, description="at most; default 10, and 3 for tags of words"
    )
    patience: int = Field(5, ge=0, description="epochs to wait for a better score; 0: all epochs")
    weight_decay: float = Field(0.01, ge=0, description="not on biases and LayerNorm")
    warmup_proportion: float = Field(0.1, ge=0, lt=1, description="share of steps to warm up")
    lr_scheduler_type: Literal["linear", "cosine", "constant", "constant_with_warmup"] = Field(
        "linear", description="schedule after the warm-up"
    )
    max_grad_norm: float = Field(5.0, ge=0, description="clip the gradient's norm; 0: do not")
    balance_coefficient: float = Field(0.01, ge=0, description="weight of the experts' balance")
    eval_batch_size: int = Field(128, ge=1, description="samples a rank in evaluation")
    teacher: str | None = Field(
        None, description="fine-tuned export of the same task to distil from"
    )
    teacher_weight: float = Field(
        0.5, ge=0, le=1, description="share of the teacher's predictions in the loss"
    )
    temperature: float = Field(1.0, gt=0, description="of the teacher's and student's predictions")
    relation_weight: float = Field(
        0.0, ge=0, description="weight of the relation loss against the teacher, on top"
    )
    num_relation_heads: int = Field(32, ge=1, description="relation heads; divide both widths")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="masters are float32")
    save_interval: int = Field(
        0, ge=0, description="epochs between checkpoints; 0: only when asked to stop"
    )
    resume: Literal["auto", "never"] = Field(
        "auto", description="auto skips what is done in output_dir and goes on behind it"
    )
    use_cpu: bool = Field(False, description="train on CPUs although there is a GPU")
    timeout_seconds: int = Field(600, ge=1, description="limit of a collective, in seconds")

    @model_validator(mode="before")
    @classmethod
    def _fill_grid(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and str(values.get("grid", "")).lower() in ("true", "1"):
            return {"learning_rates": [1e-5, 2e-5, 3e-5], "batch_sizes": [16, 32], **values}
        return values

    _at_home = field_validator("output_dir")(os.path.expanduser)


def is_positional(extra: Any) -> bool:
    """Whether a field's ``json_schema_extra`` makes it positional."""
    return isinstance(extra, Mapping) and bool(extra.get("positional"))

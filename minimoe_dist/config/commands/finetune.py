"""Options of ``minimoe-dist finetune``."""

import os
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from ..schema import Schedule
from .base import POSITIONAL, CommandOptions

_TAG_EPOCHS, _EPOCHS = 3, 10


class FinetuneOptions(CommandOptions):
    """The model, its tasks or table, and the grid of seeds, learning rates and batch sizes."""

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
    word_column: int = Field(
        1, ge=1, description="column of the words in a file of tagged words, counted from 1"
    )
    tag_column: int | None = Field(
        None, ge=1, description="column of their tags; default the last one"
    )
    strict: bool = Field(False, description="stop at a row that cannot be used")
    tokenizer_name_or_path: str | None = Field(None, description="default: the model's own")
    do_lower_case: bool | None = Field(
        None, description="true or false, whatever the tokenizer's files say of capitals"
    )
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
    lr_scheduler_type: Schedule = Field("linear", description="schedule after the warm-up")
    max_grad_norm: float = Field(5.0, ge=0, description="clip the gradient's norm; 0: do not")
    balance_coefficient: float = Field(0.01, ge=0, description="weight of the experts' balance")
    eval_batch_size: int = Field(
        128, ge=1, description="samples a rank in evaluation, and of a pass that asks the teacher"
    )
    teacher: str | None = Field(
        None, description="fine-tuned export of the same task to distil from"
    )
    unlabelled: str | None = Field(
        None,
        description="texts without labels to learn the teacher's predictions of: a file with a "
        "text a line (of pairs, a tab between both; of tags, words between blanks), or a .tsv, "
        ".csv, .json or .jsonl table with the dataset's text_columns",
    )
    teacher_weight: float | None = Field(
        None,
        ge=0,
        le=1,
        description="share of the teacher's predictions in the loss; default 0.9, and 0.5 for tags "
        "of words",
    )
    temperature: float | None = Field(
        None,
        gt=0,
        description="of the teacher's and the student's predictions; default 2, and 1 for tags",
    )
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
    dry_run: bool = Field(
        False, description="print data, cells and options, or what would stop it (then status 2)"
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

    def as_json(self) -> dict[str, Any]:
        """Returns the options of the run itself, as files hold them."""
        return self.model_dump(mode="json", exclude={"dry_run"})

    def of_teacher(self, kind: str) -> tuple[float, float]:
        """Returns the weight and the temperature of a teacher's predictions on a kind of task.

        Texts are learnt best from the teacher, tags from labels (docs/results.md).
        """
        weight, temperature = (0.5, 1.0) if kind == "tagging" else (0.9, 2.0)
        return (
            weight if self.teacher_weight is None else self.teacher_weight,
            temperature if self.temperature is None else self.temperature,
        )

    def epochs_of(self, kind: str) -> int:
        """Returns the epochs of a cell, at most, of a task of that kind."""
        return self.num_train_epochs or (_TAG_EPOCHS if kind == "tagging" else _EPOCHS)

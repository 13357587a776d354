"""Options of ``minimoe-dist predict``."""

from typing import Literal

from pydantic import Field

from .base import POSITIONAL, CommandOptions


class PredictOptions(CommandOptions):
    """The fine-tuned model, the texts that it reads, and where its predictions go."""

    source: str = Field(
        description="a fine-tuning run's folder, or the folder of a fine-tuned model",
        json_schema_extra=POSITIONAL,
    )
    text: str | None = Field(None, description="one text")
    text_pair: str | None = Field(None, description="its second text, of a model of pairs")
    input: str | None = Field(
        None,
        description="a file with a text a line, - for standard input; of pairs, a tab between "
        "both; or a .tsv, .csv, .json or .jsonl table with --text_columns",
    )
    text_columns: list[str] | None = Field(
        None, description="the table's column of text, or two; default those of the fine-tuning"
    )
    word_column: int | None = Field(
        None, ge=1, description="the input has a word a line, in this column, counted from 1"
    )
    task: str | None = Field(
        None, description="a GLUE or CLUE task, whose submission file is written, as sst2"
    )
    data_dir: str | None = Field(None, description="folder of the task's files")
    split: Literal["dev", "test"] = Field("test", description="of the task's files")
    output: str | None = Field(
        None, description="file, or folder of the task's submission; default standard output"
    )
    overwrite: bool = Field(False, description="replace an output that is there")
    format: Literal["tsv", "json"] | None = Field(
        None,
        description="lines with tabs, of tags a word a line, or JSON lines with all probabilities; "
        "default what the output's suffix says, else tsv",
    )
    max_length: int | None = Field(
        None, ge=8, description="tokens of a sample; default the fine-tuning's, else 128"
    )
    batch_size: int = Field(64, ge=1, description="samples a pass")
    use_cpu: bool = Field(False, description="stay on the CPU although there is a GPU")

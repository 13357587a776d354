"""The options of commands other than ``distill`` and ``sparsify``: one flat class for each.

Flags, help pages and checks follow from the fields (see `command_line`). ``distill`` and
``sparsify`` take a whole run instead, which `schema` declares.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import Field, field_validator
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
    max_length: int | None = Field(
        None, ge=8, description="longest held-out pair; default the run's, else 128"
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


def is_positional(extra: Any) -> bool:
    """Whether a field's ``json_schema_extra`` makes it positional."""
    return isinstance(extra, Mapping) and bool(extra.get("positional"))

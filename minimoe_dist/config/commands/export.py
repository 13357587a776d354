"""Options of ``export``."""

from typing import Literal

from pydantic import Field

from .base import POSITIONAL, CommandOptions, SavedStep


class ExportOptions(CommandOptions):
    """The model to export, and the files to write beside it."""

    source: str = Field(
        description="a model's folder, or the folder of a run that exported one",
        json_schema_extra=POSITIONAL,
    )
    output_dir: str = Field(description="the folder to write; an earlier export is replaced")
    student: str | None = Field(None, description="which one of a run with several students")
    step: SavedStep | None = Field(
        None,
        description="instead of the export: the run's checkpoint after this step, or newest; the "
        "run may be under way",
    )
    onnx: bool = Field(False, description="also onnx/model.onnx, checked with onnxruntime")
    quantize: bool = Field(
        False, description="also onnx/model_int8.onnx, a quarter of its size, and onnx/model.onnx"
    )
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

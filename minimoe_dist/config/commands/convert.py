"""Options of ``minimoe-dist convert``."""

import math
from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from ...megatron_files.arguments import Activation
from .base import CommandOptions

Layout = Literal["legacy", "core", "transformer_engine"]


class ConvertOptions(CommandOptions):
    """The model to convert between Megatron-LM and Hugging Face, and the format to write."""

    input: str = Field(min_length=1, description="checkpoint folder, or a Hugging Face folder")
    output: str = Field(min_length=1, description="folder to write")
    to: Literal["huggingface", "megatron"] | None = Field(
        None, description="what to make; default the other of what the input is"
    )
    overwrite: bool = Field(False, description="replace an output that is there")
    dtype: Literal["float32", "bfloat16", "float16"] | None = Field(
        None, description="of the weights; default what they have"
    )
    vocab_size: int | None = Field(
        None, ge=1, description="tokens of the vocabulary, without Megatron's padding"
    )
    tokenizer_name_or_path: str | None = Field(
        None, description="says the number of tokens, and is saved in a Hugging Face folder"
    )
    compare: bool = Field(
        True,
        description="compute a random batch on both sides and print the difference; "
        "--compare false leaves it out",
    )
    model_config_path: str | None = Field(
        None,
        description="config.json for a checkpoint without its arguments; default one beside it",
    )
    num_attention_heads: int | None = Field(
        None, ge=1, description="heads of a checkpoint that does not say them"
    )
    layer_norm_eps: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="of a checkpoint that does not say it; default 1e-5, as Megatron's",
    )
    hidden_act: Activation | None = Field(
        None, description="activation of the Hugging Face model; default what Megatron's was"
    )
    layout: Layout = Field(
        "legacy",
        description="names in a Megatron checkpoint: of its old models, or megatron-core's",
    )
    checkpoint_version: float = Field(
        3.0, description="decides the order of queries, keys and values: 0, 1.0, or 2.0 up"
    )
    tensor_parallel_size: int = Field(1, ge=1, description="ranks that share each layer")
    pipeline_parallel_size: int = Field(1, ge=1, description="ranks that share the row of layers")
    make_vocab_size_divisible_by: int = Field(
        128, ge=1, description="rows are padded to a multiple of it times the tensor-parallel size"
    )
    iteration: int | None = Field(None, ge=0, description="write iter_NNNNNNN; default release")

    @field_validator("checkpoint_version")
    @classmethod
    def _known_version(cls, version: float, info: ValidationInfo) -> float:
        if version not in (0, 1) and not 2 <= version < math.inf:
            raise ValueError("must be 0, 1.0, 2.0 or above")
        layout = info.data.get("layout", "legacy")
        if layout != "legacy" and version < 2:
            raise ValueError(f"must be at least 2.0 for layout {layout}, or give layout legacy")
        return version

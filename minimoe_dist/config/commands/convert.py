"""Options of ``minimoe-dist convert``."""

from typing import Literal

from pydantic import Field, model_validator

from .base import CommandOptions

Activation = Literal["gelu", "gelu_new", "gelu_pytorch_tanh"]
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
        None, gt=0, description="of a checkpoint that does not say it; default 1e-5, as Megatron's"
    )
    hidden_act: Activation | None = Field(
        None, description="activation of the Hugging Face model; default what Megatron's was"
    )
    layout: Layout = Field(
        "legacy",
        description="names in a Megatron checkpoint: of its old models, or megatron-core's",
    )
    checkpoint_version: float = Field(
        3.0, ge=0, description="decides the order of queries, keys and values: 0, 1.0, or 2.0 up"
    )
    tensor_parallel_size: int = Field(1, ge=1, description="ranks that share each layer")
    pipeline_parallel_size: int = Field(1, ge=1, description="ranks that share the row of layers")
    make_vocab_size_divisible_by: int = Field(
        128, ge=1, description="rows are padded to a multiple of it times the tensor-parallel size"
    )
    iteration: int | None = Field(None, ge=0, description="write iter_NNNNNNN; default release")

    @model_validator(mode="after")
    def _check_version(self) -> "ConvertOptions":
        version = self.checkpoint_version
        if version not in (0, 1) and version < 2:
            raise ValueError(
                f"checkpoint_version: {version:g} is not known; give 0, 1.0, 2.0 or 3.0"
            )
        if self.layout != "legacy" and version < 2:
            raise ValueError(
                f"checkpoint_version: {version:g} is older than layout {self.layout}; give at "
                "least 2.0, or layout legacy"
            )
        return self

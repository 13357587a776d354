"""The sizes and settings of a BERT: from a checkpoint's arguments, its tensors, and a user."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ..errors import UserError
from ..foreign import shown

Activation = Literal["gelu", "gelu_new", "gelu_pytorch_tanh"]
# Megatron's own default, where a checkpoint carries no arguments.
LAYER_NORM_EPSILON = 1e-5
# What each argument of Megatron's must be for Hugging Face's class to compute the same.
_SAME_MODEL: dict[str, tuple[Any, ...]] = {
    "position_embedding_type": ("learned_absolute",),
    "normalization": ("LayerNorm",),
    "add_bias_linear": (True,),
    "add_position_embedding": (True,),
    "swiglu": (False,),
    "squared_relu": (False,),
    "apply_layernorm_1p": (False,),
    "apply_residual_connection_post_layernorm": (False,),
    "untie_embeddings_and_output_weights": (False,),
    "group_query_attention": (False,),
    "qk_layernorm": (False,),
    "num_experts": (0, 1),
}


_COUNTS = {
    "num_attention_heads",
    "num_layers",
    "hidden_size",
    "ffn_hidden_size",
    "max_position_embeddings",
    "padded_vocab_size",
    "vocab_size",
    "tensor_model_parallel_size",
    "model_parallel_size",
    "pipeline_model_parallel_size",
}
# Names of arguments, their type, and the least and the most that they may be. Of counts, 0 is not
# known; hardly any epsilon is above the largest one here, and none is 0.
_NUMBERS: tuple[tuple[set[str], Any, float, float], ...] = (
    (_COUNTS, int, 0, 1 << 30),
    ({"layernorm_epsilon"}, int | float, 1e-30, 0.5),
    ({"hidden_dropout", "attention_dropout"}, int | float, 0, 1),
    ({"init_method_std"}, int | float, 0, 1e6),
)
# What all ranks of one checkpoint say alike.
_OF_ALL_RANKS = (*sorted(_COUNTS), "layernorm_epsilon", "openai_gelu", *_SAME_MODEL)


@dataclass(frozen=True)
class Sizes:
    """The sizes of a BERT.

    Attributes:
        vocab_size: rows of the word embeddings, padding among them.
    """

    num_layers: int
    hidden_size: int
    num_attention_heads: int
    ffn_hidden_size: int
    max_position_embeddings: int
    type_vocab_size: int
    vocab_size: int

    def check_split(self, tensor_parallel_size: int, pipeline_parallel_size: int) -> None:
        """Refuses numbers of ranks that this model cannot be shared among.

        Raises:
            UserError: heads, feed-forward, vocabulary or layers are not divisible.
        """
        for option, ranks, dimension, count in (
            ("num_attention_heads", 1, "hidden size", self.hidden_size),
            ("tensor_parallel_size", tensor_parallel_size, "heads", self.num_attention_heads),
            ("tensor_parallel_size", tensor_parallel_size, "feed-forward", self.ffn_hidden_size),
            ("tensor_parallel_size", tensor_parallel_size, "vocabulary", self.vocab_size),
            ("pipeline_parallel_size", pipeline_parallel_size, "layers", self.num_layers),
        ):
            divisor = self.num_attention_heads if option == "num_attention_heads" else ranks
            if divisor < 1 or count % divisor:
                raise UserError(
                    f"{option}: {divisor} does not divide the {dimension} of {count}; choose a "
                    "divisor"
                )


@dataclass(frozen=True)
class ModelOverrides:
    """A user's statements about a model; None where the checkpoint shall say it.

    Attributes:
        vocab_size: tokens of the tokenizer, without padding.
    """

    num_attention_heads: int | None = None
    layer_norm_eps: float | None = None
    hidden_act: str | None = None
    vocab_size: int | None = None


def simple_arguments(state: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a checkpoint's arguments that are plain values; none where it has none.

    Raises:
        UserError: they are no arguments.
    """
    arguments = state.get("args")
    if arguments is None:
        return {}
    if not isinstance(arguments, Mapping) and not hasattr(arguments, "__dict__"):
        raise UserError(f"its args are a {type(arguments).__name__}, not a Namespace")
    values = arguments if isinstance(arguments, Mapping) else vars(arguments)
    return {
        str(name): value
        for name, value in values.items()
        if isinstance(value, bool | int | float | str)
    }


def check_same_model(arguments: Mapping[str, Any]) -> None:
    """Refuses a model that Hugging Face's class does not describe.

    Raises:
        UserError: an argument asks for another architecture.
    """
    for name, fitting in _SAME_MODEL.items():
        value = arguments.get(name)
        if value is not None and value not in fitting:
            raise UserError(
                f"was trained with {name}={value}, which Hugging Face's megatron-bert has not; "
                f"only {name}={fitting[0]} can be converted"
            )


def check_numbers(arguments: Mapping[str, Any]) -> None:
    """Refuses arguments that no model was trained with.

    Raises:
        UserError: one is no number, or out of range.
    """
    for names, kind, least, most in _NUMBERS:
        for name in names & arguments.keys():
            value = arguments[name]
            if isinstance(value, bool) or not isinstance(value, kind) or not least <= value <= most:
                raise UserError(
                    f"its arguments say {name} {shown(value)}, which no model can have; give the "
                    "checkpoint as it was saved"
                )


def check_overrides(overrides: ModelOverrides, arguments: Mapping[str, Any], rows: int) -> None:
    """Refuses statements about a model that its own arguments contradict.

    Args:
        overrides: what a user says.
        arguments: what the checkpoint says, checked.
        rows: of the word embeddings, padding among them.

    Raises:
        UserError: one is contradicted.
    """
    heads, epsilon = arguments.get("num_attention_heads"), arguments.get("layernorm_epsilon")
    tokens = arguments.get("vocab_size")
    # Of a checkpoint that counts all rows nobody said how many are padding.
    sizes = {tokens, rows} if tokens and tokens != rows else None
    fused = arguments.get("bias_gelu_fusion")
    acts = {"gelu_new", "gelu_pytorch_tanh"} if arguments.get("openai_gelu") else {"gelu"}
    acts |= {"gelu_new", "gelu_pytorch_tanh"} if fused or "openai_gelu" not in arguments else set()
    for option, value, fitting in (
        ("num_attention_heads", overrides.num_attention_heads, {heads} if heads else None),
        ("layer_norm_eps", overrides.layer_norm_eps, {epsilon} if epsilon else None),
        ("hidden_act", overrides.hidden_act, acts if "openai_gelu" in arguments else None),
        ("vocab_size", overrides.vocab_size, sizes),
    ):
        if value is not None and fitting is not None and value not in fitting:
            recorded = " or ".join(map(str, sorted(fitting)))
            raise UserError(
                f"{option}: {value} was given, but the checkpoint's own arguments say {recorded}; "
                f"leave --{option} out, or correct the config.json that says it"
            )


def check_same_arguments(arguments: Mapping[str, Any], first: Mapping[str, Any]) -> None:
    """Refuses a rank's arguments that are not those of the first rank.

    Raises:
        UserError: both say something, and not the same.
    """
    for name in _OF_ALL_RANKS:
        if name in arguments and name in first and arguments[name] != first[name]:
            raise UserError(
                f"its arguments say {name} {arguments[name]}, those of the first rank {first[name]}"
            )


def activation(arguments: Mapping[str, Any]) -> str:
    """Returns Hugging Face's name of the activation."""
    return "gelu_new" if arguments.get("openai_gelu") else "gelu"


def config_values(
    sizes: Sizes, overrides: ModelOverrides, arguments: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns what the ``config.json`` of a checkpoint says.

    Args:
        sizes: of its tensors.
        overrides: wins over the checkpoint's arguments.
        arguments: of :func:`simple_arguments`.
    """
    epsilon = overrides.layer_norm_eps or arguments.get("layernorm_epsilon") or LAYER_NORM_EPSILON
    return {
        "vocab_size": true_vocab_size(sizes, overrides, arguments),
        "hidden_size": sizes.hidden_size,
        "num_hidden_layers": sizes.num_layers,
        "num_attention_heads": sizes.num_attention_heads,
        "intermediate_size": sizes.ffn_hidden_size,
        "max_position_embeddings": sizes.max_position_embeddings,
        "type_vocab_size": sizes.type_vocab_size,
        "hidden_act": overrides.hidden_act or activation(arguments),
        "layer_norm_eps": float(epsilon),
        "hidden_dropout_prob": float(arguments.get("hidden_dropout", 0.1)),
        "attention_probs_dropout_prob": float(arguments.get("attention_dropout", 0.1)),
        "initializer_range": float(arguments.get("init_method_std", 0.02)),
    }


def true_vocab_size(sizes: Sizes, overrides: ModelOverrides, arguments: Mapping[str, Any]) -> int:
    """Returns how many rows belong to tokens: all where nobody says how many tokens there are.

    Raises:
        UserError: more than the embeddings have.
    """
    size = overrides.vocab_size or arguments.get("vocab_size") or sizes.vocab_size
    if size > sizes.vocab_size:
        raise UserError(
            f"vocab_size: {size} tokens, but the checkpoint has {sizes.vocab_size} rows of word "
            "embeddings; give its own tokenizer's"
        )
    return int(size)


def check_version(version: float) -> None:
    """Refuses versions whose order is not known.

    Raises:
        UserError: it is neither 0 nor 1.0 nor at least 2.0.
    """
    if version not in (0, 1) and not 2 <= version < math.inf:
        raise UserError(
            f"checkpoint_version: {version:g} is not known; there are 0, 1.0 and 2.0 up"
        )

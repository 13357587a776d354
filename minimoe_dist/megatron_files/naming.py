"""The names of a BERT's weights, Megatron's spellings and Hugging Face's, and their shapes.

megatron-core's names without Transformer Engine serve as the common ones: ``embedding.…``,
``encoder.layers.N.…`` with N counted from the stage's first layer, ``pooler.…``, ``lm_head.…``,
``output_layer.…``, ``binary_head.…``.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

from ..errors import UserError
from .arguments import Sizes

Kind = Literal["whole", "by_output", "by_input", "by_heads"]
_MOST_DEPTH = 10  # of dictionaries in dictionaries; Megatron has 4

WORDS, POSITIONS = "embedding.word_embeddings.weight", "embedding.position_embeddings.weight"
SEGMENTS, WORDS_AGAIN = "embedding.tokentype_embeddings.weight", "output_layer.weight"
OUTPUT_BIAS, FINAL_NORM = "output_layer.bias", "encoder.final_layernorm"
QKV = "self_attention.linear_qkv"
LAYER = re.compile(r"encoder\.layers\.(\d{1,6})\.(.+)\.(weight|bias)")
# Parts that a checkpoint has whole or not at all.
HEADS = {
    "pooler": ("pooler.dense.weight", "pooler.dense.bias"),
    "lm_head": (
        "lm_head.dense.weight",
        "lm_head.dense.bias",
        "lm_head.layer_norm.weight",
        "lm_head.layer_norm.bias",
        OUTPUT_BIAS,
    ),
    "binary_head": ("binary_head.weight", "binary_head.bias"),
}
# Of one layer, by the common name, in the order of Megatron's files.
LAYER_NAMES = {
    "input_layernorm": "attention.ln",
    QKV: "attention.self",
    "self_attention.linear_proj": "attention.output.dense",
    "pre_mlp_layernorm": "ln",
    "mlp.linear_fc1": "intermediate.dense",
    "mlp.linear_fc2": "output.dense",
}
QKV_NAMES = ("query", "key", "value")
_HUGGING_FACE = {
    WORDS: "bert.embeddings.word_embeddings.weight",
    POSITIONS: "bert.embeddings.position_embeddings.weight",
    SEGMENTS: "bert.embeddings.token_type_embeddings.weight",
    f"{FINAL_NORM}.weight": "bert.encoder.ln.weight",
    f"{FINAL_NORM}.bias": "bert.encoder.ln.bias",
    "pooler.dense.weight": "bert.pooler.dense.weight",
    "pooler.dense.bias": "bert.pooler.dense.bias",
    "lm_head.dense.weight": "cls.predictions.transform.dense.weight",
    "lm_head.dense.bias": "cls.predictions.transform.dense.bias",
    "lm_head.layer_norm.weight": "cls.predictions.transform.LayerNorm.weight",
    "lm_head.layer_norm.bias": "cls.predictions.transform.LayerNorm.bias",
    OUTPUT_BIAS: "cls.predictions.bias",
    "binary_head.weight": "cls.seq_relationship.weight",
    "binary_head.bias": "cls.seq_relationship.bias",
}

# Megatron's spellings through the years, to the common one. Applied in turn.
_SPELLINGS = [
    (re.compile(pattern), common)
    for pattern, common in (
        (r"^module\.", ""),
        (r"^language_model\.embedding\.", "embedding."),
        (r"^language_model\.(transformer|encoder)\.", "encoder."),
        (r"^language_model\.pooler\.", "pooler."),
        (r"(layers\.\d+)\.attention\.", r"\1.self_attention."),
        (r"\.self_attention\.query_key_value\.", ".self_attention.linear_qkv."),
        (r"\.self_attention\.dense\.", ".self_attention.linear_proj."),
        (r"\.mlp\.dense_h_to_4h\.", ".mlp.linear_fc1."),
        (r"\.mlp\.dense_4h_to_h\.", ".mlp.linear_fc2."),
        (r"\.self_attention\.linear_qkv\.layer_norm_", ".input_layernorm."),
        (r"\.mlp\.linear_fc1\.layer_norm_", ".pre_mlp_layernorm."),
        (r"\.input_norm\.", ".input_layernorm."),
        (r"\.post_attention_(layer)?norm\.", ".pre_mlp_layernorm."),
        (r"^encoder\.final_norm\.", "encoder.final_layernorm."),
        (r"^lm_head\.bias$", OUTPUT_BIAS),
        (r"^lm_head\.(layernorm|norm)\.", "lm_head.layer_norm."),
        (r"^word_embeddings(_for_head)?\.weight$", WORDS_AGAIN),
    )
]
# Transformer Engine's state for 8-bit numbers.
_WITHOUT_EFFECT = re.compile(r"_extra_state(\.|$|\d)")


def common_names(
    model: Mapping[str, Any], check_tensor: Callable[[str, Any], None]
) -> tuple[dict[str, Any], bool]:
    """Renames a rank's weights to common names; returns whether they are megatron-core's too.

    Args:
        model: what a file has as its model.
        check_tensor: refuses what is no plain tensor with numbers, by its spelling.

    Raises:
        UserError: a name is none of a BERT's, or a tensor cannot be a weight of its name.
    """
    weights: dict[str, Any] = {}
    is_core = "language_model" not in model and not any(
        str(name).startswith("language_model.") for name in model
    )
    for spelling, value in _flat(model):
        if _WITHOUT_EFFECT.search(spelling):
            continue
        name = spelling
        for pattern, common in _SPELLINGS:
            name = pattern.sub(common, name)
        if getattr(value, "shape", None) is None or not _is_known(name):
            raise UserError(f"{spelling[:100]} is no weight of Megatron's BERT")
        if name in weights:
            raise UserError(f"{spelling} is there in two spellings")
        check_tensor(spelling, value)
        dimensions = 1 if name.endswith(".bias") or "norm" in name else 2
        if len(value.shape) != dimensions or 0 in value.shape:
            raise UserError(
                f"{spelling} is of shape {list(value.shape)}, not of {dimensions} dimensions with "
                "numbers in them"
            )
        weights[name] = value
    return weights, is_core


def _flat(values: Mapping[str, Any], prefix: str = "", depth: int = 0) -> list[tuple[str, Any]]:
    if depth > _MOST_DEPTH:
        raise UserError(f"{prefix[:100]} is nested too deep")
    pairs: list[tuple[str, Any]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            pairs += _flat(value, f"{prefix}{name}.", depth + 1)
        elif value is not None:
            pairs.append((f"{prefix}{name}", value))
    return pairs


def _is_known(name: str) -> bool:
    layer = LAYER.fullmatch(name)
    if layer is not None:
        return layer.group(2) in LAYER_NAMES
    return name in _HUGGING_FACE or name == WORDS_AGAIN


def hugging_face_name(name: str, first_layer: int = 0) -> str:
    """Returns Hugging Face's name of a common one; of fused projections their three's template.

    Args:
        name: common name.
        first_layer: number of the stage's first layer.
    """
    layer = LAYER.fullmatch(name)
    if layer is None:
        return _HUGGING_FACE[name]
    number, part, kind = int(layer.group(1)) + first_layer, layer.group(2), layer.group(3)
    prefix = f"bert.encoder.layer.{number}.{LAYER_NAMES[part]}."
    return prefix + ("{}." + kind if part == QKV else kind)


def layer_names(number: int) -> list[str]:
    """Returns the common names of a layer's weights, by its number in its stage."""
    return [
        f"encoder.layers.{number}.{part}.{kind}"
        for part in LAYER_NAMES
        for kind in ("weight", "bias")
    ]


def kind_of(name: str) -> Kind:
    """Returns how the tensor of a common name is shared among tensor-parallel ranks."""
    layer = LAYER.fullmatch(name)
    if layer is None:
        return "by_output" if name in (WORDS, WORDS_AGAIN, OUTPUT_BIAS) else "whole"
    _, part, kind = layer.groups()
    if part == QKV:
        return "by_heads"
    if part == "mlp.linear_fc1":
        return "by_output"
    is_row_parallel = part in ("self_attention.linear_proj", "mlp.linear_fc2")
    return "by_input" if is_row_parallel and kind == "weight" else "whole"


def numbered(name: str, first_layer: int) -> str:
    """Returns a stage's common name with the layer's number in the whole model."""
    layer = LAYER.fullmatch(name)
    if layer is None:
        return name
    return f"encoder.layers.{int(layer.group(1)) + first_layer}.{layer.group(2)}.{layer.group(3)}"


def expected_shape(name: str, sizes: Sizes) -> tuple[int, ...]:
    """Returns the shape of a whole tensor, by its common name."""
    hidden, feed_forward = sizes.hidden_size, sizes.ffn_hidden_size
    tables = {
        WORDS: sizes.vocab_size,
        WORDS_AGAIN: sizes.vocab_size,
        POSITIONS: sizes.max_position_embeddings,
        SEGMENTS: sizes.type_vocab_size,
        "pooler.dense.weight": hidden,
        "lm_head.dense.weight": hidden,
        "binary_head.weight": 2,
    }
    if name in tables:
        return (tables[name], hidden)
    vectors = {OUTPUT_BIAS: sizes.vocab_size, "binary_head.bias": 2}
    layer = LAYER.fullmatch(name)
    part, kind = (layer.group(2), layer.group(3)) if layer else ("", "bias")
    if kind == "bias" or "layernorm" in part:
        wide = {QKV: 3 * hidden, "mlp.linear_fc1": feed_forward}
        return (wide.get(part, vectors.get(name, hidden)),)
    weights = {
        QKV: (3 * hidden, hidden),
        "self_attention.linear_proj": (hidden, hidden),
        "mlp.linear_fc1": (feed_forward, hidden),
        "mlp.linear_fc2": (hidden, feed_forward),
    }
    return weights[part]

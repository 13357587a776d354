"""The names of a BERT's weights: Megatron's spellings and Hugging Face's.

megatron-core's names without Transformer Engine serve as the common ones: ``embedding.…``,
``encoder.layers.N.…`` with N counted from the stage's first layer, ``pooler.…``, ``lm_head.…``,
``output_layer.…``, ``binary_head.…``.
"""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...config.commands.convert import Layout as Layout
from ...errors import UserError

Weights = dict[str, Tensor]
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


def common_names(model: Mapping[str, Any]) -> tuple[Weights, bool]:
    """Renames a rank's weights to common names; returns whether they are megatron-core's too.

    Raises:
        UserError: a name is none of a BERT's, or a tensor cannot be a weight of its name.
    """
    weights: Weights = {}
    is_core = "language_model" not in model and not any(
        str(name).startswith("language_model.") for name in model
    )
    for spelling, value in _flat(model):
        if _WITHOUT_EFFECT.search(spelling):
            continue
        name = spelling
        for pattern, common in _SPELLINGS:
            name = pattern.sub(common, name)
        if not isinstance(value, Tensor) or not _is_known(name):
            raise UserError(f"{spelling[:100]} is no weight of Megatron's BERT")
        if name in weights:
            raise UserError(f"{spelling} is there in two spellings")
        _check_plain(spelling, name, value)
        weights[name] = value
    return weights, is_core


def _check_plain(spelling: str, name: str, value: Tensor) -> None:
    """Refuses what is called a tensor and has no numbers in memory, or not in its dimensions."""
    is_plain = value.layout is torch.strided and value.device.type == "cpu"
    if not is_plain or value.is_nested or value.is_quantized:
        raise UserError(f"{spelling} is no plain tensor")
    dimensions = 1 if name.endswith(".bias") or "norm" in name else 2
    if value.dim() != dimensions or 0 in value.shape:
        raise UserError(
            f"{spelling} is of shape {list(value.shape)}, not of {dimensions} dimensions with "
            "numbers in them"
        )
    # A stride of 0 makes a small file say any size.
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise UserError(f"{spelling} has {list(value.shape)} numbers, more than are stored")


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


def megatron_model(weights: Mapping[str, Tensor], layout: Layout, version: float) -> dict[str, Any]:
    """Returns a rank's weights as Megatron saves them.

    Args:
        weights: by common names.
        layout: ``legacy`` nests dictionaries; ``core`` and ``transformer_engine`` are flat, the
            latter with LayerNorms inside the linear maps that read them.
        version: of a legacy checkpoint, which spells a few names after it.
    """
    if layout == "core":
        return dict(weights)
    if layout == "transformer_engine":
        return {_engine_name(name): value for name, value in weights.items()}
    return _nested(weights, version)


def _engine_name(name: str) -> str:
    name = re.sub(r"\.input_layernorm\.", f".{QKV}.layer_norm_", name)
    return re.sub(r"(layers\.\d+)\.pre_mlp_layernorm\.", r"\1.mlp.linear_fc1.layer_norm_", name)


def _nested(weights: Mapping[str, Tensor], version: float) -> dict[str, Any]:
    attention, encoder = (
        ("self_attention", "encoder") if version >= 2 else ("attention", "transformer")
    )
    parts = {
        QKV: f"{attention}.query_key_value",
        "self_attention.linear_proj": f"{attention}.dense",
        "pre_mlp_layernorm": "post_attention_layernorm",
        "mlp.linear_fc1": "mlp.dense_h_to_4h",
        "mlp.linear_fc2": "mlp.dense_4h_to_h",
    }
    language: dict[str, Any] = {}
    model: dict[str, Any] = {"language_model": language}
    for name, value in weights.items():
        layer = LAYER.fullmatch(name)
        if layer is not None:
            number, part, kind = layer.groups()
            local_name = f"layers.{number}.{parts.get(part, part)}.{kind}"
            language.setdefault(encoder, {})[local_name] = value
        elif name.startswith("encoder."):
            language.setdefault(encoder, {})[name.removeprefix("encoder.")] = value
        elif name.startswith("embedding."):
            _, table, kind = name.split(".")
            language.setdefault("embedding", {})[table] = {kind: value}
        elif name.startswith("pooler."):
            language.setdefault("pooler", {})[name.removeprefix("pooler.")] = value
        elif name == OUTPUT_BIAS:
            model.setdefault("lm_head", {})["bias"] = value
        elif name == WORDS_AGAIN:
            model["word_embeddings_for_head"] = {"weight": value}
        else:
            head, _, local_name = name.partition(".")
            local_name = local_name.replace("layer_norm", "layernorm")
            model.setdefault(head, {})[local_name] = value
    return model

"""How Megatron-LM nests and spells the weights that it saves."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ...config.commands.convert import Layout as Layout
from ...megatron_files.naming import LAYER, OUTPUT_BIAS, QKV, WORDS_AGAIN


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

"""Students as Hugging Face folders that anyone can load.

A plain student becomes a ``BertModel`` folder, which transformers loads alone. A student with
experts becomes a ``minimoe`` folder with its code: ``AutoModel`` loads it after
``import minimoe_dist``, or anywhere with ``trust_remote_code=True``.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import BertConfig, BertModel

from ..models import blocks, configuration, encoder, experts, moebert, noise, packing
from ..models.configuration import MiniMoeConfig
from ..models.moebert import MiniMoeForRelations
from .published import load_published

_CODE = (blocks, configuration, encoder, experts, moebert, noise, packing)
_BERT_FIELDS = (
    "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
    "hidden_act", "hidden_dropout_prob", "attention_probs_dropout_prob", "max_position_embeddings",
    "type_vocab_size", "initializer_range", "layer_norm_eps", "pad_token_id",
)  # fmt: skip


def export_student(
    config: MiniMoeConfig, weights: Mapping[str, Tensor], folder: str | Path, tokenizer: Any = None
) -> Path:
    """Writes a student as a Hugging Face folder, whole or not at all.

    Args:
        config: the student's.
        weights: float32, of :class:`MiniMoeForRelations`, all experts.
        folder: where to; an earlier export there is replaced.
        tokenizer: saved beside the model where given.

    Returns:
        ``folder``.
    """
    folder = Path(folder)
    aside = folder.with_name(folder.name + ".partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    if config.is_dense:
        plain_bert(config, weights).save_pretrained(aside)
    else:
        _save_with_code(config, weights, aside)
    if tokenizer is not None:
        tokenizer.save_pretrained(aside)
    if folder.exists():
        shutil.rmtree(folder)
    aside.rename(folder)
    return folder


def plain_bert(config: MiniMoeConfig, weights: Mapping[str, Tensor]) -> BertModel:
    """A dense student as transformers' own class."""
    fields = {name: getattr(config, name) for name in _BERT_FIELDS}
    bert_config = BertConfig(**fields, num_relation_heads=config.num_relation_heads)
    model = BertModel(bert_config, add_pooling_layer=config.with_pooler)
    state = {
        name.removeprefix("bert."): value
        for name, value in weights.items()
        if name.startswith("bert.")
    }
    model.load_state_dict(state)
    return model


def _save_with_code(config: MiniMoeConfig, weights: Mapping[str, Tensor], folder: Path) -> None:
    model = MiniMoeForRelations(config)
    model.load_state_dict(dict(weights))
    model.config.auto_map = {
        "AutoConfig": "configuration.MiniMoeConfig",
        "AutoModel": "moebert.MiniMoeModel",
    }
    model.save_pretrained(folder)
    for module in _CODE:
        assert module.__file__ is not None
        shutil.copy(module.__file__, folder)


def load_student(folder: str | Path) -> MiniMoeForRelations:
    """A student from a folder that :func:`export_student` wrote, or a published one.

    Raises:
        ValueError: the folder holds no student.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise ValueError(f"{path}: missing: name a student's folder")
    if json.loads(path.read_text()).get("model_type") == MiniMoeConfig.model_type:
        model: MiniMoeForRelations = MiniMoeForRelations.from_pretrained(folder)
        return model
    return load_published(folder)

"""Students as Hugging Face folders that anyone can load.

A plain student becomes a ``BertModel`` folder, which transformers loads alone. A student with
experts becomes a ``minimoe`` folder with its code: ``AutoModel`` loads it after
``import minimoe_dist``, or anywhere with ``trust_remote_code=True``.
"""

import copy
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import BertConfig, BertModel

from ..models import configuration, experts, moebert, noise, packing
from ..models.configuration import MiniMoeConfig
from ..models.moebert import MiniMoeForRelations
from .files import (
    PARTIAL,
    beside,
    finish_replacing,
    flush_file,
    flush_folder,
    make_empty,
    replace_folder,
    share,
)
from .published import fresh_pooler, load_published, read_config, read_state, student_of

_CODE = (configuration, experts, moebert, noise, packing)
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
    finish_replacing(folder)
    aside = beside(folder, PARTIAL)
    make_empty(aside)
    # Modules draw weights before they get the student's; a run's generator is not for that.
    with torch.random.fork_rng(devices=[]):
        if config.is_dense:
            _plain_bert(config, weights).save_pretrained(aside)
        else:
            _save_with_code(config, weights, aside)
    if tokenizer is not None:
        tokenizer.save_pretrained(aside)
    for path in aside.rglob("*"):
        if path.is_file():
            share(path)
            flush_file(path)
    flush_folder(aside)
    replace_folder(aside, folder)
    return folder


def _plain_bert(config: MiniMoeConfig, weights: Mapping[str, Tensor]) -> BertModel:
    """A dense student as transformers' own class."""
    fields = {name: getattr(config, name) for name in _BERT_FIELDS}
    model = BertModel(BertConfig(**fields, num_relation_heads=config.num_relation_heads))
    state = {**({} if config.with_pooler else fresh_pooler(config)), **weights}
    model.load_state_dict({name.removeprefix("bert."): value for name, value in state.items()})
    return model


def _save_with_code(config: MiniMoeConfig, weights: Mapping[str, Tensor], folder: Path) -> None:
    model = MiniMoeForRelations(copy.deepcopy(config))
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
        ValueError: the folder holds no student, or only a part of one.
    """
    config = read_config(folder)
    if config.get("model_type") == MiniMoeConfig.model_type:
        return student_of(MiniMoeConfig.from_dict(config), read_state(folder), folder)
    return load_published(folder)

"""Students as Hugging Face folders that anyone can load.

A plain student becomes a ``BertModel`` folder, which transformers loads alone; so does a sub-model
that is plain. A student with experts becomes a ``minimoe`` folder, a sliceable one a
``minimoe-elastic`` folder, each with its code: ``AutoModel`` loads it after
``import minimoe_dist``, or anywhere with ``trust_remote_code=True``.
"""

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor
from transformers import BertConfig, BertModel

from ..models import (
    blocks,
    configuration,
    elastic,
    elastic_configuration,
    elastic_surgery,
    encoder,
    experts,
    moebert,
    noise,
    packing,
    submodels,
)
from ..models.configuration import MiniMoeConfig
from ..models.elastic import ElasticForRelations, ElasticPreTrainedModel
from ..models.elastic_configuration import ElasticConfig
from ..models.elastic_mlm import ElasticForMaskedLM
from ..models.moebert import MiniMoeForRelations
from .published import Student, load_published

_CODE = (blocks, configuration, encoder, experts, moebert, noise, packing)
_ELASTIC_CODE = (
    blocks,
    configuration,
    elastic,
    elastic_configuration,
    experts,
    noise,
    packing,
    submodels,
)
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
        weights: float32, of :class:`MiniMoeForRelations`, all experts; or of a sliceable student.
        folder: where to; an earlier export there is replaced.
        tokenizer: saved beside the model where given.

    Returns:
        ``folder``.
    """
    if isinstance(config, ElasticConfig):
        with_head = any(name.startswith("cls.") for name in weights)
        model = (ElasticForMaskedLM if with_head else ElasticForRelations)(config)
        model.load_state_dict(dict(weights))
        return export_elastic(model, folder, tokenizer)
    with _replaced(Path(folder), tokenizer) as aside:
        if config.is_dense:
            plain_bert(config, weights).save_pretrained(aside)
        else:
            _save_with_code(config, weights, aside)
    return Path(folder)


def export_elastic(
    model: ElasticPreTrainedModel,
    folder: str | Path,
    tokenizer: Any = None,
    sparsity: str | None = None,
) -> Path:
    """Writes a sliceable student, or one of its sub-models, as a Hugging Face folder.

    Args:
        model: its weights.
        folder: where to; an earlier export there is replaced.
        tokenizer: saved beside the model where given.
        sparsity: the sub-model to write alone: a ``BertModel`` where it is one. By default all
            weights, with the map of their sub-models.

    Returns:
        ``folder``.

    Raises:
        ValueError: no such sub-model.
    """
    config = model.config
    keeps_map = sparsity is None and config.sparsity == submodels.WHOLE
    with _replaced(Path(folder), tokenizer) as aside:
        if not keeps_map and elastic_surgery.is_plain_bert(config, sparsity):
            elastic_surgery.plain_bert(model, sparsity).save_pretrained(aside)
        else:
            own = model if sparsity is None else elastic_surgery.cut(model, sparsity)
            own.config.auto_map = {
                "AutoConfig": "elastic_configuration.ElasticConfig",
                "AutoModel": "elastic.ElasticModel",
            }
            own.save_pretrained(aside)
            _copy_code(_ELASTIC_CODE, aside)
    return Path(folder)


@contextmanager
def _replaced(folder: Path, tokenizer: Any) -> Iterator[Path]:
    """A folder to write into, which takes the place of ``folder`` at the end."""
    aside = folder.with_name(folder.name + ".partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    yield aside
    if tokenizer is not None:
        tokenizer.save_pretrained(aside)
    if folder.exists():
        shutil.rmtree(folder)
    aside.rename(folder)


def _copy_code(modules: Iterable[ModuleType], folder: Path) -> None:
    for module in modules:
        assert module.__file__ is not None
        shutil.copy(module.__file__, folder)


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
    _copy_code(_CODE, folder)


def load_student(folder: str | Path) -> Student:
    """A student from a folder that :func:`export_student` wrote, or a published one.

    Raises:
        ValueError: the folder holds no student.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        raise ValueError(f"{path}: missing: name a student's folder")
    model_type = json.loads(path.read_text()).get("model_type")
    classes: dict[str, Any] = {
        MiniMoeConfig.model_type: MiniMoeForRelations,
        ElasticConfig.model_type: ElasticForRelations,
    }
    if model_type in classes:
        model: Student = classes[model_type].from_pretrained(folder)
        return model
    return load_published(folder)

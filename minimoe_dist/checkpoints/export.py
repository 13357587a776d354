"""Students as Hugging Face folders that anyone can load.

A plain student becomes a folder of its family's class (``BertModel``, ``RobertaModel`` or
``MegatronBertModel``; ``…ForMaskedLM`` if it has that head), which transformers loads alone, and so
does a sub-model that is plain. A student with experts becomes a ``minimoe`` folder, a sliceable
one a ``minimoe-elastic`` folder, each with its code: ``AutoModel`` loads it after
``import minimoe_dist.models.auto``, or anywhere with ``trust_remote_code=True``.
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    MegatronBertConfig,
    MegatronBertForMaskedLM,
    MegatronBertModel,
    PreTrainedModel,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaModel,
)

from ..model_description import read_model_json
from ..models import elastic_surgery, submodels
from ..models.build import PLAIN_FIELDS
from ..models.configuration import MiniMoeConfig
from ..models.elastic import ElasticForRelations, ElasticPreTrainedModel
from ..models.elastic_configuration import ElasticConfig
from ..models.mlm_head import ElasticForRelationsAndMaskedLM, MiniMoeForRelationsAndMaskedLM
from ..models.moebert import MiniMoeForRelations
from .published import Student, load_published, read_state, student_of
from .published.layout import EMBEDDINGS, published_name, tied_decoder
from .tensors import replaced_model

# By family: configuration, encoder, encoder with a masked-LM head.
_PLAIN_CLASSES: dict[str, tuple[Any, Any, Any]] = {
    "bert": (BertConfig, BertModel, BertForMaskedLM),
    "roberta": (RobertaConfig, RobertaModel, RobertaForMaskedLM),
    "megatron-bert": (MegatronBertConfig, MegatronBertModel, MegatronBertForMaskedLM),
}


def export_student(
    config: MiniMoeConfig, weights: Mapping[str, Tensor], folder: str | Path, tokenizer: Any = None
) -> Path:
    """Writes a student as a Hugging Face folder, whole or not at all.

    Args:
        config: the student's.
        weights: float32, all experts, of any class of student. What served an objective only is
            left out: relation projections of plain students, maps to the teacher's width.
        folder: where to; an earlier export there is replaced.
        tokenizer: saved beside the model where given.

    Returns:
        ``folder``.
    """
    if isinstance(config, ElasticConfig):
        return export_elastic(elastic_student(config, weights), folder, tokenizer)
    with exported(Path(folder), tokenizer) as aside:
        if config.is_dense:
            plain_model(config, weights).save_pretrained(aside)
        else:
            _save_with_code(config, weights, aside)
    return Path(folder)


def elastic_student(config: ElasticConfig, weights: Mapping[str, Tensor]) -> ElasticForRelations:
    """Makes a sliceable student of its weights, with a masked-LM head where they have one."""
    with_head = any(name.startswith("cls.") for name in weights)
    with torch.random.fork_rng(devices=[]):
        model = (ElasticForRelationsAndMaskedLM if with_head else ElasticForRelations)(config)
    model.load_state_dict(dict(weights))
    return model


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
    with exported(Path(folder), tokenizer) as aside:
        if not keeps_map and elastic_surgery.is_plain_bert(config, sparsity):
            elastic_surgery.plain_bert(model, sparsity).save_pretrained(aside)
        else:
            if sparsity is not None:
                model = elastic_surgery.cut(model, sparsity)
            model.save_pretrained(aside)
    return Path(folder)


@contextmanager
def exported(folder: Path, tokenizer: Any = None) -> Iterator[Path]:
    """Yields a folder for a model's files, which takes the place of ``folder`` at the end."""
    with replaced_model(folder) as aside:
        # Modules draw weights before they get the student's; a run's generator is not for that.
        with torch.random.fork_rng(devices=[]):
            yield aside
        if tokenizer is not None:
            tokenizer.save_pretrained(aside)


def plain_model(config: MiniMoeConfig, weights: Mapping[str, Tensor]) -> PreTrainedModel:
    """Makes a dense student a model of transformers' own class, with its masked-LM head if any."""
    config_class, encoder_class, masked_lm_class = _PLAIN_CLASSES[config.family]
    fields = {name: getattr(config, name) for name in PLAIN_FIELDS}
    for name in ("bos_token_id", "eos_token_id"):
        if getattr(config, name, None) is not None:
            fields[name] = getattr(config, name)
    state = {name: value for name, value in weights.items() if name.startswith(("bert.", "cls."))}
    head = tied_decoder(state, state[EMBEDDINGS])
    if head:
        plain: PreTrainedModel = masked_lm_class(config_class(**fields))
        full_state = {**state, **head}
        named = {published_name(k, config.family): value for k, value in full_state.items()}
        plain.load_state_dict({k: v for k, v in named.items() if ".pooler." not in k})
        return plain
    # A pooler that nobody trained is left out: transformers draws one at a load, and says so.
    plain = encoder_class(config_class(**fields), add_pooling_layer=config.with_pooler)
    plain.load_state_dict({name.removeprefix("bert."): value for name, value in state.items()})
    return plain


def _save_with_code(config: MiniMoeConfig, weights: Mapping[str, Tensor], folder: Path) -> None:
    state = {k: v for k, v in weights.items() if k.startswith(("bert.", "relation.", "cls."))}
    with_head = any(name.startswith("cls.") for name in state)
    exported_config = copy.deepcopy(config)
    exported_config.state_width = None
    model = (MiniMoeForRelationsAndMaskedLM if with_head else MiniMoeForRelations)(exported_config)
    model.load_state_dict(state)
    model.save_pretrained(folder)


def load_student(folder: str | Path) -> Student:
    """Loads a student from a folder that :func:`export_student` wrote, or a published one.

    Raises:
        ValueError: the folder holds no student, or only a part of one.
    """
    config = read_model_json(folder)
    model_type = config.get("model_type")
    with_head = any("MaskedLM" in name for name in config.get("architectures") or ())
    if model_type == MiniMoeConfig.model_type:
        moe_class = MiniMoeForRelationsAndMaskedLM if with_head else MiniMoeForRelations
        return student_of(moe_class, MiniMoeConfig.from_dict(config), read_state(folder), folder)
    if model_type == ElasticConfig.model_type:
        sliceable = ElasticForRelationsAndMaskedLM if with_head else ElasticForRelations
        return student_of(sliceable, ElasticConfig.from_dict(config), read_state(folder), folder)
    return load_published(folder)

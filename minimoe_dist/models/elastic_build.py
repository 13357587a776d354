"""Builds sliceable BERTs from BERT checkpoints, sparsified folders and plain sizes."""

import copy
from collections.abc import Sequence
from typing import Any, TypeVar

import torch

from ..errors import UserError, first_line
from ..model_paths import resolve_model_path
from .auto import AutoConfig
from .build import PLAIN_FIELDS, build_student_from, student_config
from .elastic import ElasticForRelations
from .elastic_configuration import ElasticConfig
from .elastic_surgery import cut
from .mlm_head import ElasticForRelationsAndMaskedLM
from .pretrained import quiet_transformers
from .submodels import once_for_all_map

Student = TypeVar("Student", bound=ElasticForRelations)


def elastic_config(base: Any, **fields: Any) -> ElasticConfig:
    """Makes the configuration of a whole sliceable BERT of the sizes of ``base``.

    Args:
        base: a Hugging Face configuration of BERT's kind.
        fields: of :class:`ElasticConfig`, in addition or instead.
    """
    inherited = {name: getattr(base, name) for name in PLAIN_FIELDS if hasattr(base, name)}
    return ElasticConfig(**(inherited | fields))


def load_masked_lm(path: str) -> ElasticForRelationsAndMaskedLM:
    """Loads a whole model to be sparsified: a BERT with its masked-LM head.

    Args:
        path: folder (a BERT's, or one of a sliceable BERT), ``package:NAME``, or name on the
            Hugging Face hub.

    Raises:
        UserError: the checkpoint has no such model.
    """
    folder = resolve_model_path(path)
    config: Any = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    assert config.model_type in ("bert", ElasticConfig.model_type), config.model_type
    if config.model_type == "bert":
        config = elastic_config(config, relation_projections=False, with_pooler=True)
    model, missing = _load(folder, path, config)
    missing_head = [name for name in missing if name.startswith("cls.")]
    if missing_head:
        raise UserError(
            f"{path}: {missing_head[0]} is missing, so it has no masked-LM head: give a checkpoint "
            "that was saved with its head, or train one with model_type bert_mlm"
        )
    if any("pooler" in name for name in missing):
        model.bert.pooler, model.config.with_pooler = None, False
    return model


def sparse_student(
    sparsified: ElasticForRelations,
    sparsity: str,
    *,
    num_relation_heads: int,
    seed: int,
    relation_projections: bool = True,
    model_class: type[Student],
) -> Student:
    """Builds the student that starts as a sub-model of a sparsified BERT.

    Args:
        sparsified: the whole BERT with its map, which is left as it is.
        sparsity: a key of its map, for instance "90".
        num_relation_heads: R of the relation loss; divides the whole hidden size.
        seed: of what ``sparsified`` does not have; that is a function of it alone.
        relation_projections: whether the student learns relations.
        model_class: with a masked-LM head or without.

    Raises:
        UserError: there is no such sub-model.
    """
    config = copy.deepcopy(sparsified.config)
    assert config.hidden_size % num_relation_heads == 0, num_relation_heads
    config.shape(sparsity)
    config.num_relation_heads = num_relation_heads
    config.relation_projections = relation_projections
    config.with_pooler = False  # distillation would not train it, only let it decay
    return cut(build_student_from(sparsified, config, model_class, seed), sparsity)


def once_for_all_config(
    base: Any,
    *,
    layers: int,
    hidden: int,
    heads: int,
    sub_layers: Sequence[int],
    sub_hidden: Sequence[int],
    num_relation_heads: int,
    neurons: int | None = None,
    compat_seed: bool = False,
) -> ElasticConfig:
    """Makes the configuration of a once-for-all student of ``layers`` × ``hidden``.

    :func:`.build.build_student` makes it, with ``model_class=ElasticForRelations``.

    Args:
        base: a Hugging Face BERT configuration: vocabulary, positions, dropout.
        layers: of the whole student.
        hidden: of the whole student.
        heads: of the whole student.
        sub_layers: the sub-models' numbers of layers.
        sub_hidden: the sub-models' hidden sizes.
        num_relation_heads: R of the relation loss.
        neurons: of each feed-forward block; 4 times the hidden size where it is None.
        compat_seed: keep the LayerNorms of layers that a sub-model does not have.

    Raises:
        UserError: the sizes do not fit each other.
    """
    plain = student_config(
        base,
        layers=layers,
        hidden=hidden,
        heads=heads,
        experts=(1, 1),
        num_relation_heads=num_relation_heads,
        neurons=neurons,
    )
    config = elastic_config(plain, keep_missing_layers=compat_seed)
    config.sparsity_map = once_for_all_map(config.sizes, sub_layers, sub_hidden)
    return config


def _load(
    folder: str, path: str, config: ElasticConfig
) -> tuple[ElasticForRelationsAndMaskedLM, list[str]]:
    """Loads the model in float32; returns the missing names too, of head and pooler alone."""
    with torch.random.fork_rng(devices=[]):
        try:
            with quiet_transformers():
                model, report = ElasticForRelationsAndMaskedLM.from_pretrained(
                    folder,
                    config=config,
                    dtype=torch.float32,
                    weights_only=True,
                    output_loading_info=True,
                )
        except (OSError, RuntimeError, ValueError) as error:
            reason = first_line(error)
            raise UserError(f"{path} has no weights that can be loaded ({reason})") from error
    missing = sorted(report["missing_keys"])
    missing_encoder = [n for n in missing if n.startswith("bert.") and "pooler" not in n]
    if missing_encoder:
        raise UserError(
            f"{path}: {len(missing_encoder)} weights are missing, {missing_encoder[0]} for one"
        )
    return model.eval(), missing

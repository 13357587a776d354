"""Models with a task's head: from any folder that holds an encoder, and to Hugging Face folders.

Every encoder is trained as one of the classes of :mod:`..models.task_heads`, so that dropout, the
order of samples and the treatment of padding are the same for teachers and students. A plain one
(BERT, RoBERTa, MegatronBert) leaves as transformers' own ``…ForSequenceClassification`` or
``…ForTokenClassification``; one with experts, or a sliceable one, with its code. Encoders that
students are not built like are trained as transformers' own classes, and leave as such.
"""

import copy
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import (
    BertForSequenceClassification,
    BertForTokenClassification,
    MegatronBertForSequenceClassification,
    MegatronBertForTokenClassification,
    PreTrainedConfig,
    PreTrainedModel,
    RobertaForSequenceClassification,
    RobertaForTokenClassification,
)

from ..data.tasks import Task, places_of_labels
from ..errors import UserError, first_line
from ..model_description import describe_model
from ..model_paths import resolve_model_path
from ..models.configuration import MiniMoeConfig
from ..models.elastic_configuration import ElasticConfig
from ..models.foreign_tasks import ForeignTaskModel, foreign_task_class, last_map
from ..models.pretrained import quiet_transformers, read_encoder_config
from ..models.task_heads import (
    ElasticForSequenceClassification,
    ElasticForTokenClassification,
    MiniMoeForSequenceClassification,
    MiniMoeForTokenClassification,
)
from .export import exported
from .published import config_from_published, load_published
from .published.layout import parameter_name, published_name

# By family: for texts, for tokens.
_PLAIN_CLASSES: dict[str, tuple[type[PreTrainedModel], type[PreTrainedModel]]] = {
    "bert": (BertForSequenceClassification, BertForTokenClassification),
    "roberta": (RobertaForSequenceClassification, RobertaForTokenClassification),
    "megatron-bert": (MegatronBertForSequenceClassification, MegatronBertForTokenClassification),
}
_STUDENT_CLASSES: dict[str, tuple[type[PreTrainedModel], type[PreTrainedModel]]] = {
    MiniMoeConfig.model_type: (MiniMoeForSequenceClassification, MiniMoeForTokenClassification),
    ElasticConfig.model_type: (ElasticForSequenceClassification, ElasticForTokenClassification),
}
_HEAD_PREFIXES = ("bert.pooler.", "classifier.", "relation.")
# RoBERTa's head for texts has the pooler's map inside.
_ROBERTA_HEAD = {"classifier.dense.": "bert.pooler.dense.", "classifier.out_proj.": "classifier."}


@dataclass(frozen=True)
class TaskModel:
    """An encoder with a task's head, as it was read.

    Attributes:
        model: on CPU, in float32, in evaluation mode; a ``PreTrainedModel``, or one that is not
            ours, wrapped.
        plain: transformers' configuration that the export gets; None for students of our own types.
        fresh: names of parameters that the folder did not have, which :meth:`copy` draws.
    """

    model: Any
    plain: PreTrainedConfig | None
    fresh: frozenset[str] = field(default_factory=frozenset)

    def copy(self, seed: int) -> Any:
        """Makes a copy to train, whose fresh parameters are a function of ``seed``."""
        model = copy.deepcopy(self.model)
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in model.named_parameters():
            if name in self.fresh:
                with torch.no_grad():
                    if name.endswith(".bias"):
                        parameter.zero_()
                    elif parameter.ndim == 1:
                        parameter.fill_(1.0)  # of a norm
                    else:
                        spread = model.config.initializer_range
                        parameter.normal_(0.0, spread, generator=generator)
        return model

    def save(self, weights: Mapping[str, Tensor], folder: Path) -> None:
        """Writes the weights of a copy, without relation projections, into a folder."""
        state = {name: value for name, value in weights.items() if not name.startswith("relation.")}
        config, is_tagging = self.model.config, self.model.tags_tokens
        if isinstance(self.model, ForeignTaskModel):
            foreign = type(self.model.model)(copy.deepcopy(self.model.model.config))
            prefix = "model."
            foreign.load_state_dict(
                {name.removeprefix(prefix): value for name, value in state.items()}
            )
            foreign.save_pretrained(folder)
        elif self.plain is not None:
            plain = _PLAIN_CLASSES[config.family][is_tagging](copy.deepcopy(self.plain))
            plain.load_state_dict(_plain_state(state, config.family, is_tagging))
            plain.save_pretrained(folder)
        else:
            _save_with_code(config, state, folder, is_tagging)


def load_task_model(path: str, task: Task, *, with_relations: bool = False) -> TaskModel:
    """Reads an encoder and gives it the head that a task wants.

    A head of the same labels, as of a fine-tuned export, is read too, and its rows are put in the
    task's order; other labels get a new head.

    Args:
        path: folder, ``package:NAME``, or name on the Hugging Face hub; teachers, and exports of
            students of any kind.
        task: with its labels.
        with_relations: keep a student's relation projections, for distillation.

    Raises:
        UserError: no such model, of no supported type, or with weights missing.
    """
    folder = resolve_model_path(path)
    described = describe_model(path, foreign=True)
    if described is not None and described.only_teaches:
        return _load_foreign(path, folder, task)
    config, state, plain = _read(path, folder, task)
    is_tagging = task.kind == "tagging"
    model = _STUDENT_CLASSES[config.model_type][is_tagging](config)
    if with_relations:
        model.add_relations()
    parameters = model.state_dict()
    read = {
        name: value
        for name, value in state.items()
        if name in parameters and parameters[name].shape == value.shape
    }
    rows = _head_rows(plain or config, state, task)
    for name in [name for name in read if name.startswith("classifier.")]:
        if rows is None:
            del read[name]
        else:
            read[name] = read[name][rows]
    missing = sorted(parameters.keys() - read.keys())
    _refuse_incomplete(path, [name for name in missing if not name.startswith(_HEAD_PREFIXES)])
    model.load_state_dict({**parameters, **read})
    set_labels(config, task)
    if plain is not None:
        set_labels(plain, task)
    return TaskModel(model.eval(), plain, frozenset(missing))


def _load_foreign(path: str, folder: str, task: Task) -> TaskModel:
    """Reads an encoder that students are not built like."""
    config = copy.deepcopy(read_encoder_config(path, folder))
    is_tagging = task.kind == "tagging"
    names = label_names(config)
    _size_head(config, task)
    model_class = foreign_task_class(config, tags_tokens=is_tagging)
    model, missing = _loaded(path, folder, model_class, config)
    encoder = f"{model.base_model_prefix}."
    _refuse_incomplete(
        path, [name for name in sorted(missing) if name.startswith(encoder) and "pool" not in name]
    )
    head = last_map(model, config.num_labels)
    weight, bias = f"{head}.weight", f"{head}.bias"
    rows = [0] if task.kind == "regression" else places_of_labels(names, task.labels)
    if rows is None:
        missing |= {weight, bias}
    elif weight not in missing:
        with torch.no_grad():
            for name in (weight, bias):
                parameter = model.get_parameter(name)
                parameter.copy_(parameter[rows].clone())
    set_labels(config, task)
    set_labels(model.config, task)
    wrapped = ForeignTaskModel(model, tags_tokens=is_tagging)
    return TaskModel(wrapped.eval(), None, frozenset(f"model.{name}" for name in missing))


def _refuse_incomplete(path: str, absent: Sequence[str]) -> None:
    if absent:
        raise UserError(
            f"{path}: {len(absent)} weights of its encoder are missing or of another shape, "
            f"{absent[0]} for one; give the checkpoint and the configuration of one model"
        )


def _read(
    path: str, folder: str, task: Task
) -> tuple[MiniMoeConfig, dict[str, Tensor], PreTrainedConfig | None]:
    """Reads our configuration, weights by our names, and transformers' configuration if plain."""
    described = describe_model(path)
    if described is not None and described.is_published_student:
        student = load_published(folder)
        student_config: MiniMoeConfig = copy.deepcopy(student.config)
        _size_head(student_config, task)
        return student_config, dict(student.state_dict()), None
    config = read_encoder_config(path, folder)
    is_tagging = task.kind == "tagging"
    if config.model_type in _STUDENT_CLASSES:
        student_config = copy.deepcopy(config)
        assert isinstance(student_config, MiniMoeConfig)
        if isinstance(student_config, ElasticConfig) and student_config.sub_models:
            student_config.sparsity_map = {}  # of a once-for-all student, the whole one is trained
        _size_head(student_config, task)
        model_class = _with_relations(
            _STUDENT_CLASSES[config.model_type][is_tagging], student_config
        )
        return student_config, _weights(path, folder, model_class, student_config)[0], None
    plain = copy.deepcopy(config)
    state, missing = _weights(path, folder, _PLAIN_CLASSES[config.model_type][is_tagging], plain)
    parameters = {
        _task_parameter_name(name): value for name, value in state.items() if name not in missing
    }
    student_config = config_from_published(config.to_dict())
    student_config.classifier_dropout = getattr(config, "classifier_dropout", None)
    _size_head(student_config, task)
    return student_config, parameters, plain


def _with_relations(model_class: type[PreTrainedModel], config: Any) -> type[PreTrainedModel]:
    """Returns the class with relation projections, so that reading a folder finds theirs."""
    if not config.relation_projections:
        return model_class

    class WithRelations(model_class):
        _keys_to_ignore_on_load_unexpected = [r"^cls\."]  # noqa: RUF012

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.add_relations()
            self.post_init()

    return WithRelations


def _weights(
    path: str, folder: str, model_class: type[PreTrainedModel], config: PreTrainedConfig
) -> tuple[dict[str, Tensor], set[str]]:
    """Reads the parameters of a class in float32 from a folder, and names those it does not hold.

    Raises:
        UserError: it holds none that can be read.
    """
    model, missing = _loaded(path, folder, model_class, config)
    state = {name: value for name, value in model.state_dict().items() if name not in missing}
    return state, missing


def _loaded(
    path: str, folder: str, model_class: type[Any], config: PreTrainedConfig
) -> tuple[Any, set[str]]:
    """Loads a model of a class, and names the parameters that the folder does not hold."""
    try:
        # What the folder lacks is drawn; a run's generator is not for that.
        with torch.random.fork_rng(devices=[]), quiet_transformers():
            model, report = model_class.from_pretrained(
                folder,
                config=config,
                dtype=torch.float32,
                weights_only=True,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} has weights in a pickle of more than tensors, which could run any code; "
            "give a model.safetensors"
        ) from error
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        reason = first_line(error)
        raise UserError(
            f"{path} has no weights that can be loaded ({reason}); give a complete model folder"
        ) from error
    return model, {*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])}


def _task_parameter_name(name: str) -> str:
    for roberta_prefix, prefix in _ROBERTA_HEAD.items():
        if name.startswith(roberta_prefix):
            return prefix + name.removeprefix(roberta_prefix)
    return parameter_name(name)


def _plain_name(name: str, family: str) -> str:
    """Returns transformers' name of ours: the inverse of :func:`_task_parameter_name`."""
    if family == "roberta" and name.startswith("bert.pooler."):
        return name.replace("bert.pooler.", "classifier.", 1)
    return published_name(name, family)


def _size_head(config: PreTrainedConfig, task: Task) -> None:
    """Gives a configuration a label for each of a task, by number while no names are known."""
    if config.num_labels != len(task.labels or "1"):
        config.num_labels = len(task.labels or "1")


def _head_rows(
    config: PreTrainedConfig, state: Mapping[str, Tensor], task: Task
) -> list[int] | None:
    """Returns which row of a folder's head is each of a task's labels'; None if it has others."""
    if "classifier.weight" not in state:
        return None
    return [0] if task.kind == "regression" else places_of_labels(label_names(config), task.labels)


def label_names(config: Any) -> tuple[str, ...]:
    """Returns a configuration's labels in the order of their numbers."""
    names = config.id2label if not isinstance(config, Mapping) else config.get("id2label") or {}
    return tuple(str(name) for _, name in sorted((int(key), name) for key, name in names.items()))


def set_labels(config: PreTrainedConfig, task: Task) -> None:
    """Writes a task, its label names and its kind into a configuration."""
    labels = task.labels or ("LABEL_0",)
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: number for number, label in enumerate(labels)}
    config.finetuning_task = task.name
    if task.kind != "tagging":
        config.problem_type = (
            "regression" if task.kind == "regression" else "single_label_classification"
        )


def gives_signals(model: Any) -> bool:
    """Returns whether a model read with ``with_relations`` has signals to compare."""
    if isinstance(model, ForeignTaskModel):
        return False
    return model.relation is not None or not isinstance(model.config, ElasticConfig)


def export_task_model(
    source: TaskModel, weights: Mapping[str, Tensor], folder: str | Path, tokenizer: Any = None
) -> Path:
    """Writes a fine-tuned model as a Hugging Face folder, whole or not at all.

    ``AutoModelForSequenceClassification`` or ``AutoModelForTokenClassification`` loads it: a plain
    one alone, others after ``import minimoe_dist.models.auto`` or with ``trust_remote_code=True``.

    Args:
        source: what was trained.
        weights: of one of its copies, float32; relation projections are left out.
        folder: where to; an earlier export there is replaced.
        tokenizer: saved beside the model where given.

    Returns:
        ``folder``.
    """
    with exported(Path(folder), tokenizer) as aside:
        source.save(weights, aside)
    return Path(folder)


def _plain_state(weights: Mapping[str, Tensor], family: str, is_tagging: bool) -> dict[str, Tensor]:
    state = {}
    for name, value in weights.items():
        if family == "roberta" and not is_tagging and name.startswith("classifier."):
            state[name.replace("classifier.", "classifier.out_proj.", 1)] = value
        else:
            state[_plain_name(name, family)] = value
    return state


def _save_with_code(
    config: MiniMoeConfig, weights: Mapping[str, Tensor], folder: Path, is_tagging: bool
) -> None:
    config_copy = copy.deepcopy(config)
    model_class: Any = _STUDENT_CLASSES[config_copy.model_type][is_tagging]
    model = model_class(config_copy)
    model.load_state_dict(dict(weights))
    model.save_pretrained(folder)

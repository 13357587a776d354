"""Checks what a run asks of its teacher against the teacher's description, without torch."""

from collections.abc import Iterator
from pathlib import Path

from ..config import ConfigError, RunConfig
from ..config.checks import is_sparsification
from ..config.model_types import Learns, types_that
from ..megatron_files.finding import is_megatron_checkpoint
from ..model_description import SLICEABLE, ModelDescription, describe_model, require_model
from .models import check_divided, check_length, check_relation_heads
from .problems import problems_of
from .weights import check_weights, tensor_names

_OPTION = "teacher.model_name_or_path"


def describe_teacher(config: RunConfig, starts_here: bool = True) -> ModelDescription | None:
    """Describes a run's teacher by its files; returns None for a hub's that is not cached here.

    Args:
        config: the run.
        starts_here: whether one that is not on this machine is refused.

    Raises:
        UserError: it is missing, one file of Megatron-LM's, or no model that can teach.
    """
    name = config.teacher.model_name_or_path
    path = Path(name).expanduser()
    if path.is_file() and is_megatron_checkpoint(path):
        raise ConfigError(
            f"{_OPTION}: {path} is one file of Megatron-LM's; give the folder of its ranks, or "
            f"convert it: minimoe-dist convert --input {path} --output {path}-huggingface"
        )
    described = (
        require_model(name, _OPTION, weights=_runs(config), teaches=True)
        if starts_here
        else describe_model(name, _OPTION, teaches=True)
    )
    if described is not None and described.is_megatrons and is_sparsification(config):
        raise ConfigError(
            f"{_OPTION}: {path} is a checkpoint of Megatron-LM's, which teaches and is not "
            f"sparsified; convert it: minimoe-dist convert --input {path} --output "
            f"{path}-huggingface"
        )
    return described


def _runs(config: RunConfig) -> bool:
    """Tells whether the teacher computes, so that its weights are needed."""
    return bool(config.objective.relation_weight) or is_sparsification(config)


def check_teacher_weights(config: RunConfig, teacher: ModelDescription) -> None:
    """Refuses a teacher whose files do not hold what the run loads.

    Args:
        config: the run.
        teacher: description of the teacher, which is there.

    Raises:
        UserError: as :func:`check_weights`.
    """
    if not _runs(config):
        return
    layers, whole = teacher.num_hidden_layers, True
    if config.learns_relations and not is_sparsification(config):
        if config.teacher.relation_layer != -1:
            layers = min(layers, config.teacher.relation_layer)
        whole = config.teacher.layout == "replicated" or config.learns_last_states
    check_weights(_OPTION, teacher, layers, whole=whole)


def teacher_problems(
    config: RunConfig, teacher: ModelDescription, world_size: int
) -> Iterator[str]:
    """Yields, one line each, how a teacher does not fit a run.

    Args:
        config: the run.
        teacher: description of the teacher, which an earlier stage may still have to export.
        world_size: number of the run's processes.
    """
    length, heads = config.data.max_length, config.objective.num_relation_heads
    yield from problems_of(_check_family, config, teacher)
    yield from problems_of(_check_iteration, config, teacher)
    yield from problems_of(_check_segments, config, teacher)
    yield from problems_of(check_length, "data.max_length", length, "teacher", teacher)
    if is_sparsification(config):
        yield from problems_of(_check_masked_lm_head, teacher)
    elif config.objective.relation_weight:
        yield from problems_of(_check_teaches, config, teacher)
        yield from problems_of(_check_relation_layer, config, teacher)
        yield from problems_of(_check_layout, config, teacher, config.teacher.ranks(world_size))
    if config.learns_relations:
        option = "objective.num_relation_heads"
        yield from problems_of(check_relation_heads, option, heads, "teacher", teacher)


def _check_family(config: RunConfig, teacher: ModelDescription) -> None:
    family = config.kind.family
    # A student of another family comes from a configuration of its own.
    is_base = all(student.model_name_or_path is None for student in config.students)
    if family is not None and is_base and teacher.family != family:
        fitting = types_that(family=teacher.family)
        remedy = f"model_type {fitting[0]}" if fitting else f"a teacher of family {family}"
        raise ConfigError(
            f"model_type: {config.model_type} makes students of family {family}, but teacher "
            f"{teacher.path} is of {teacher.family}; give {remedy}"
        )


def _check_iteration(config: RunConfig, teacher: ModelDescription) -> None:
    if config.iteration == 2 and not teacher.is_student:
        raise ConfigError(
            f"iteration: 2 learns from an assistant, but {teacher.path} was not distilled; run "
            "iteration 1 first and give its export as the teacher"
        )
    if config.iteration == 1 and teacher.is_student:
        raise ConfigError(
            f"iteration: 1 learns from a plain teacher, but {teacher.path} is a student; use "
            "iteration 2"
        )


def _check_segments(config: RunConfig, teacher: ModelDescription) -> None:
    data_type, family = config.data.data_type, teacher.encoder_family
    reads = family is not None and family.reads_segments and data_type.startswith("bert")
    if reads and teacher.type_vocab_size < 2:
        raise ConfigError(
            f"data.data_type: {data_type} makes pairs of two segments, and teacher {teacher.path} "
            f"knows one (type_vocab_size of its config.json); give roberta{data_type[4:]}"
        )


def _check_teaches(config: RunConfig, teacher: ModelDescription) -> None:
    is_for_relations = teacher.is_published_student or teacher.model_type == SLICEABLE
    if config.kind.learns is Learns.STATES and (is_for_relations or teacher.only_teaches):
        what = f"of type {teacher.model_type} and" if teacher.only_teaches else "a student that"
        raise ConfigError(
            f"{_OPTION}: {teacher.path} is {what} teaches relations only, and "
            f"{config.model_type} learns states; give an encoder, or model_type "
            f"{types_that(family='bert', learns=Learns.RELATIONS)[0]}"
        )


def _check_relation_layer(config: RunConfig, teacher: ModelDescription) -> None:
    layer, layers = config.teacher.relation_layer, teacher.num_hidden_layers
    if layer > layers:
        raise ConfigError(
            f"teacher.relation_layer: {layer}, but {teacher.path} has {layers} layers; use at most "
            f"{layers}"
        )
    family = teacher.encoder_family
    whole_layers = (layers if layer == -1 else layer) - 1
    if family is not None and whole_layers < family.least_layers:
        raise ConfigError(
            f"teacher.relation_layer: {layer}, but of {teacher.path}, a {teacher.model_type}, at "
            f"least layer {family.least_layers + 1} can teach; give a later one"
        )
    whole = layer == layers and not teacher.is_published_student
    if config.learns_relations and teacher.signals_on_top and layer != -1 and not whole:
        raise ConfigError(
            f"teacher.relation_layer: {layer} is no layer with signals of {teacher.path}, a "
            "student with relation projections behind its last layer; give -1"
        )


def _check_layout(config: RunConfig, teacher: ModelDescription, ranks: int) -> None:
    layout = config.teacher.layout
    if config.teacher.dtype == "float8" and not teacher.runs_as_students:
        raise ConfigError(
            f"teacher.dtype: float8 is not for {teacher.path}, a {teacher.model_type}, which runs "
            "as Hugging Face's; give auto"
        )
    if config.teacher.implementation == "megatron":
        if teacher.model_type != "megatron-bert":
            raise ConfigError(
                f"teacher.implementation: megatron runs megatron-bert, and {teacher.path} is of "
                f"type {teacher.model_type}; use transformers"
            )
        if layout == "replicated":
            _check_sliceable("teacher.implementation: megatron", teacher)
    if layout == "replicated":
        return
    if teacher.is_published_student:
        raise ConfigError(
            f"teacher.layout: {layout}, but {teacher.path} is a published student, which is loaded "
            "whole; use replicated"
        )
    if layout == "tensor" and (teacher.is_native_student or not teacher.runs_as_students):
        what = "a student" if teacher.is_native_student else "an encoder"
        raise ConfigError(
            f"teacher.layout: tensor is not for {teacher.path}, {what} of type "
            f"{teacher.model_type}; use zero3 or replicated"
        )
    if layout == "tensor":
        remedy = "use a divisor, or teacher.layout zero3"
        check_divided("teacher.parallel_size", ranks, teacher, remedy)
    _check_sliceable(f"teacher.layout: {layout}", teacher)


def _check_sliceable(option: str, teacher: ModelDescription) -> None:
    if teacher.has_weights and not teacher.has_sliceable_weights:
        raise ConfigError(
            f"{option} reads weights in pieces, and {teacher.path} has no model.safetensors; "
            "convert it with transformers' save_pretrained, or leave the option out"
        )


def _check_masked_lm_head(model: ModelDescription) -> None:
    """Refuses to sparsify a model without the head that importances are measured with."""
    names = tensor_names(model)
    if names is None or any(name.startswith("cls.predictions.transform.") for name in names):
        return
    sizes = {
        "layer": model.num_hidden_layers,
        "hidden": model.hidden_size,
        "heads": model.num_attention_heads,
        "neurons": model.intermediate_size,
    }
    flags = " ".join(f"--{name} {value}" for name, value in sizes.items())
    raise ConfigError(
        f"{model.path}: has no masked-LM head, by whose loss importances are measured; train one "
        f"with the encoder first (minimoe-dist distill --model_type bert_mlm --initial_weights "
        f"{model.path} {flags}) and sparsify what that exports"
    )

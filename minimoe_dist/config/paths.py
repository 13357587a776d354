"""Checks of what options point at that need only small files: folders and a model's JSON."""

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .model_types import types_that
from .problems import ConfigError

if TYPE_CHECKING:
    from .run import RunConfig

# Of a Hugging Face folder: all weights in one file, or the list of the files that they are in.
WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
# RoBERTa's positions start after its padding id, so its tables have two rows that no token uses.
_UNUSED_POSITIONS = {"roberta": 2, "xlm-roberta": 2, "camembert": 2}


def check_output_dir(output_dir: str) -> None:
    """Refuses an output folder that cannot be written (it need not exist yet).

    Raises:
        ConfigError: it is a file, or it or its nearest existing parent is not writable.
    """
    check_writable("output_dir", output_dir)


def check_writable(option: str, path: str) -> None:
    """Refuses a folder that cannot be written (it need not exist yet).

    Raises:
        ConfigError: it is a file, or it or its nearest existing parent is not writable.
    """
    folder = Path(path).expanduser().absolute()
    existing = next(one for one in (folder, *folder.parents) if one.exists())
    if not existing.is_dir():
        raise ConfigError(f"{option}: {path}: {existing} is a file; give another folder")
    try:
        # Only writing tells: permissions do not bind root, nor speak of a file system's state.
        with tempfile.TemporaryFile(dir=existing) as probe:
            probe.write(b"?")
    except OSError as error:
        raise ConfigError(
            f"{option}: {path}: {existing} is not writable ({error.strerror}); give another"
        ) from None


def read_model_json(folder: str) -> dict[str, Any]:
    """The ``config.json`` of a local model folder; empty for a hub name.

    Raises:
        ConfigError: the file is broken.
    """
    path = Path(folder) / "config.json"
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: not readable as JSON ({error}); give another model") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: not a model's configuration; give another model")
    return values


def read_tensor_names(folder: str) -> set[str] | None:
    """The names of a model folder's tensors, from the head of its safetensors file.

    None where that cannot be told: another format, several files, or a damaged one.
    """
    path = Path(folder) / "model.safetensors"
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            head = file.read(length) if length <= path.stat().st_size else b""
            return set(json.loads(head))
    except (OSError, ValueError):
        return None


def check_masked_lm_head(path: str, folder: str, model: dict[str, Any]) -> None:
    """Refuses to sparsify a model without the head that importances are measured with.

    Args:
        path: as the user names it.
        folder: where it is.
        model: its ``config.json``.

    Raises:
        ConfigError: its weights have no masked-LM head; says how to train one.
    """
    names = read_tensor_names(folder)
    if names is None or any(name.startswith("cls.predictions.transform.") for name in names):
        return
    sizes = {
        "layer": model.get("num_hidden_layers"),
        "hidden": model.get("hidden_size"),
        "heads": model.get("num_attention_heads"),
    }
    flags = " ".join(f"--{name} {value}" for name, value in sizes.items())
    raise ConfigError(
        f"{path}: has no masked-LM head, by whose loss importances are measured; train one with "
        f"the encoder first (minimoe-dist distill --model_type bert_mlm --initial_weights {path} "
        f"{flags}) and sparsify what that exports"
    )


def check_teacher_fits(config: "RunConfig", model: dict[str, Any]) -> None:
    """Refuses a run whose numbers the teacher's configuration cannot serve.

    Args:
        config: the run.
        model: the teacher's ``config.json``; empty where it is not known yet.

    Raises:
        ConfigError: relation heads, relation layer or maximum length do not fit the teacher.
    """
    name = config.teacher.model_name_or_path
    hidden, layers = model.get("hidden_size"), model.get("num_hidden_layers")
    relation_heads, layer = config.objective.num_relation_heads, config.teacher.relation_layer
    if config.learns_relations and hidden is not None and hidden % relation_heads:
        raise ConfigError(
            f"objective.num_relation_heads: {relation_heads} does not divide the hidden size "
            f"{hidden} of teacher {name}; choose a divisor"
        )
    if layers is not None and layer > layers:
        raise ConfigError(
            f"teacher.relation_layer: {layer}, but {name} has {layers} layers; use at most {layers}"
        )
    _check_kind(config, model)
    check_length("data.max_length", config.data.max_length, f"teacher {name}", model)


def check_length(option: str, length: int, name: str, model: dict[str, Any]) -> None:
    """Refuses samples that are longer than a model's positions.

    Args:
        option: of the length.
        length: tokens of a sample.
        name: of the model.
        model: its ``config.json``; empty where it is not known yet.

    Raises:
        ConfigError: they are.
    """
    positions = model.get("max_position_embeddings")
    if positions is None:
        return
    positions -= _UNUSED_POSITIONS.get(str(model.get("family", model.get("model_type"))), 0)
    if length > positions:
        raise ConfigError(
            f"{option}: {length} is longer than the {positions} positions of {name}; "
            f"use at most {positions}"
        )


def check_teacher_layout(
    config: "RunConfig", model: dict[str, Any], folder: str, world_size: int
) -> None:
    """Refuses a sharded layout that the teacher cannot have.

    Args:
        config: the run.
        model: the teacher's ``config.json``; empty where it is not known yet.
        folder: of the teacher; may be a hub name.
        world_size: processes of the run.

    Raises:
        ConfigError: one of our own students as ``tensor``, sizes that the ranks do not divide, or
            weights that cannot be read in pieces.
    """
    teacher = config.teacher
    name, layout, ranks = teacher.model_name_or_path, teacher.layout, teacher.ranks(world_size)
    if layout == "replicated":
        return
    kind = str(model.get("model_type", ""))
    sparse = str(model.get("sparsity", "0")) != "0"
    if not kind.startswith("minimoe") and (str(model.get("moe", "1,1")) != "1,1" or sparse):
        raise ConfigError(
            f"teacher.layout: {layout}, but {name} is a published student, which is loaded whole; "
            "use replicated"
        )
    if layout == "tensor":
        _check_divisible(name, model, ranks)
    files = (Path(folder, WEIGHTS), Path(folder, WEIGHTS_INDEX))
    if Path(folder).is_dir() and not any(file.is_file() for file in files):
        raise ConfigError(
            f"teacher.layout: {layout} reads weights in pieces, and {name} has no "
            "model.safetensors; convert it with transformers' save_pretrained, or use replicated"
        )


def _check_divisible(name: str, model: dict[str, Any], ranks: int) -> None:
    kind = str(model.get("model_type", ""))
    if kind.startswith("minimoe"):
        raise ConfigError(
            f"teacher.layout: tensor is not for {name}, a student of type {kind}; use zero3 or "
            "replicated"
        )
    for what, field in (
        ("attention heads", "num_attention_heads"),
        ("feed-forward neurons", "intermediate_size"),
    ):
        count = model.get(field)
        if count is not None and count % ranks:
            raise ConfigError(
                f"teacher.parallel_size: {ranks} does not divide the {count} {what} of teacher "
                f"{name}; use a divisor, or teacher.layout zero3"
            )


def _check_kind(config: "RunConfig", model: dict[str, Any]) -> None:
    """Refuses a teacher of another family, or one that the iteration does not name."""
    name, kind = config.teacher.model_name_or_path, model.get("model_type")
    family, wanted = model.get("family", kind), config.kind.family
    # A student of another family comes from a configuration of its own.
    own = all(student.model_name_or_path is None for student in config.students)
    if kind is not None and wanted is not None and own and family != wanted:
        fitting = types_that(family=family)
        remedy = f"model_type {fitting[0]}" if fitting else f"a teacher of family {wanted}"
        raise ConfigError(
            f"model_type: {config.model_type} makes students of family {wanted}, but teacher "
            f"{name} is of {family}; give {remedy}"
        )
    is_student = "num_relation_heads" in model
    if kind is not None and config.iteration == 2 and not is_student:
        raise ConfigError(
            f"iteration: 2 learns from an assistant, but {name} was not distilled; run iteration 1 "
            "first and give its export as the teacher"
        )
    if kind is not None and config.iteration == 1 and is_student:
        raise ConfigError(
            f"iteration: 1 learns from a plain teacher, but {name} is a student; use iteration 2"
        )


def check_same_vocabulary(
    teacher: dict[str, Any], student: dict[str, Any], option: str, path: str
) -> None:
    """Refuses a student whose vocabulary is not its teacher's.

    Args:
        teacher: the teacher's ``config.json``.
        student: that of the model at ``path``, which ``option`` names.
        option: the option's name.
        path: its value.

    Raises:
        ConfigError: the numbers of tokens differ.
    """
    theirs, ours = teacher.get("vocab_size"), student.get("vocab_size")
    if None not in (theirs, ours) and theirs != ours:
        raise ConfigError(
            f"{option}: {path} has a vocabulary of {ours}, the teacher of {theirs}; give one that "
            "shares the teacher's tokenizer"
        )

"""Finds what would make ``minimoe-dist convert`` fail, before torch is imported."""

from pathlib import Path
from typing import Any, Literal

from ..config import ConfigError
from ..config.commands import ConvertOptions
from ..config.paths import check_writable
from ..durable import check_replaceable
from ..errors import UserError
from ..megatron_files.finding import find_rank_files, is_megatron_checkpoint
from ..model_description import ModelDescription, read_model_json, require_model
from ..runtime import Launch
from .models import check_divided

# Options that one direction alone heeds.
_ONLY_TO = {
    "huggingface": ("num_attention_heads", "layer_norm_eps", "hidden_act", "model_config_path"),
    "megatron": (
        "layout",
        "checkpoint_version",
        "tensor_parallel_size",
        "pipeline_parallel_size",
        "make_vocab_size_divisible_by",
        "iteration",
    ),
}


def check(options: ConvertOptions, launch: Launch) -> None:
    """Refuses an input that is missing or incomplete, and an output that may not be written.

    Raises:
        ConfigError: one line that names the option, the value and the remedy.
    """
    source, output = Path(options.input).expanduser(), Path(options.output).expanduser()
    direction = direction_of(options)
    if direction == "huggingface":
        try:
            find_rank_files(source)
        except UserError as error:
            raise ConfigError(f"input: {error}") from None
    else:
        _check_split(options, require_model(str(source), "input"))
    _check_direction(options, direction)
    if options.model_config_path is not None and not config_json(options.model_config_path):
        raise ConfigError(
            f"model_config_path: {options.model_config_path} is no config.json; give a model's"
        )
    check_writable("output", options.output)
    target, origin = output.absolute(), source.absolute()
    if target == origin or origin in target.parents or target in origin.parents:
        raise ConfigError(f"output: {output} and the input are in each other; give another folder")
    if output.is_dir() and any(output.iterdir()) and not options.overwrite:
        raise ConfigError(f"output: {output} is there already; give another, or --overwrite")
    check_replaceable(output)


def _check_direction(options: ConvertOptions, direction: str) -> None:
    """Refuses options that say nothing about this direction, as they would not be heeded."""
    for other, names in _ONLY_TO.items():
        given = [name for name in names if name in options.model_fields_set]
        if other != direction and given:
            raise ConfigError(
                f"--{given[0]}: {getattr(options, given[0])} is heeded only in converting to "
                f"{other}, and this is to {direction}; leave it out"
            )


def _check_split(options: ConvertOptions, model: ModelDescription) -> None:
    if model.model_type != "megatron-bert":
        raise ConfigError(
            f"input: {model.path} is of type {model.model_type}; only megatron-bert has its "
            "LayerNorms where Megatron's BERT has them: give such a model"
        )
    remedy = "choose a divisor"
    check_divided("tensor_parallel_size", options.tensor_parallel_size, model, remedy)
    ranks, layers = options.pipeline_parallel_size, model.num_hidden_layers
    if layers % ranks:
        raise ConfigError(
            f"pipeline_parallel_size: {ranks} does not divide the {layers} layers of "
            f"{model.path}; {remedy}"
        )


def config_json(path: str) -> dict[str, Any]:
    """Reads a model's configuration by its file or folder; empty where there is none."""
    folder = Path(path).expanduser()
    if folder.is_file():
        folder = folder.parent
    return read_model_json(folder) if (folder / "config.json").is_file() else {}


def direction_of(options: ConvertOptions) -> Literal["huggingface", "megatron"]:
    """Returns the format to convert to.

    Raises:
        ConfigError: the options do not say it, and the input is of neither format.
    """
    source = Path(options.input).expanduser()
    if not source.exists():
        raise ConfigError(f"input: {source} does not exist; check the path")
    if options.to is not None:
        return options.to
    if is_megatron_checkpoint(source):
        return "huggingface"
    if (source / "config.json").is_file():
        return "megatron"
    raise ConfigError(
        f"input: {source} is no Megatron checkpoint and no Hugging Face folder; check the path, or "
        "say with --to huggingface that it is the file of a checkpoint's only rank"
    )

"""What can be refused of ``minimoe-dist convert`` before torch is imported: paths and kinds."""

from pathlib import Path
from typing import Any, Literal

from ..checkpoints.megatron.finding import find_rank_files, is_megatron_checkpoint
from ..config import ConfigError
from ..config.commands import ConvertOptions
from ..config.paths import check_writable, read_model_json
from ..durable import check_replaceable
from ..errors import UserError
from ..runtime import Launch


def check(options: ConvertOptions, launch: Launch) -> None:
    """Refuses an input that is not there or incomplete, and an output that may not be written.

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
        _check_split(options, source, read_model_json(str(source)))
    if options.model_config_path is not None and not config_json(options.model_config_path):
        raise ConfigError(
            f"model_config_path: {options.model_config_path} is no config.json; give a model's"
        )
    check_writable("output", options.output)
    own, other = output.absolute(), source.absolute()
    if own == other or other in own.parents or own in other.parents:
        raise ConfigError(f"output: {output} and the input are in each other; give another folder")
    if output.is_dir() and any(output.iterdir()) and not options.overwrite:
        raise ConfigError(f"output: {output} is there already; give another, or --overwrite")
    check_replaceable(output)


def _check_split(options: ConvertOptions, source: Path, model: dict[str, Any]) -> None:
    if not model:
        raise ConfigError(f"input: {source} has no config.json; give a Hugging Face model's folder")
    if model.get("model_type") != "megatron-bert":
        raise ConfigError(
            f"input: {source} is of type {model.get('model_type')}; only megatron-bert has its "
            "LayerNorms where Megatron's BERT has them: give such a model"
        )
    for option, key, what in (
        ("tensor_parallel_size", "num_attention_heads", "heads"),
        ("tensor_parallel_size", "intermediate_size", "feed-forward neurons"),
        ("pipeline_parallel_size", "num_hidden_layers", "layers"),
    ):
        ranks, count = getattr(options, option), model.get(key)
        if isinstance(count, int) and count % ranks:
            raise ConfigError(
                f"{option}: {ranks} does not divide the input's {count} {what}; choose a divisor"
            )


def config_json(path: str) -> dict[str, Any]:
    """A model's configuration, of its file or its folder; empty where there is none."""
    given = Path(path).expanduser()
    return read_model_json(str(given.parent if given.is_file() else given))


def direction_of(options: ConvertOptions) -> Literal["huggingface", "megatron"]:
    """What is to be made.

    Raises:
        ConfigError: nobody says it, and the input is neither.
    """
    source = Path(options.input).expanduser()
    if options.to is not None:
        return options.to
    if is_megatron_checkpoint(source):
        return "huggingface"
    if (source / "config.json").is_file():
        return "megatron"
    if not source.exists():
        raise ConfigError(f"input: {source} does not exist; check the path")
    raise ConfigError(
        f"input: {source} is no Megatron checkpoint and no Hugging Face folder; check the path, or "
        "say with --to huggingface that it is the file of a checkpoint's only rank"
    )

"""Finds what would make ``minimoe-dist export`` fail, before torch is imported."""

from importlib.util import find_spec
from pathlib import Path

from ..config import ConfigError
from ..config.commands import ExportOptions
from ..config.paths import check_output_dir
from ..durable import check_replaceable
from ..model_description import require_model
from ..reporting.runs import find_export, find_saved
from ..runtime import Launch
from .weights import check_weights


def check(options: ExportOptions, launch: Launch) -> None:
    """Refuses a source that is no model, a target that must not be written, missing packages.

    Raises:
        ConfigError: one line that names option, value and remedy.
        UserError: the same, of the source.
    """
    check_output_dir(options.output_dir)
    if options.step is not None:
        saved = find_saved(options.source, options.step, options.student)
        _check_target(options.output_dir, saved.checkpoint)
    else:
        source = find_export(options.source, options.student).folder
        _check_target(options.output_dir, source)
        _check_model(options, source)
    for package in ("onnx", "onnxruntime") if options.onnx or options.quantize else ():
        if find_spec(package) is None:
            raise ConfigError(
                f"--{'onnx' if options.onnx else 'quantize'}: the package {package} is not "
                "installed; pip install 'minimoe-dist[export]'"
            )


def _check_model(options: ExportOptions, source: Path) -> None:
    model = require_model(str(source), "source")
    if not model.has_safetensors:
        raise ConfigError(
            f"{source}: has no model.safetensors; pickles are not handed on: save the model as "
            "safetensors first"
        )
    check_weights("source", model)
    if options.sentence_transformers and not model.has_tokenizer:
        raise ConfigError(
            f"--sentence_transformers: {source} has no tokenizer; save the teacher's there first"
        )


def _check_target(output_dir: str, source: Path) -> None:
    target = Path(output_dir).absolute()
    origin = source.absolute()
    if target == origin or target in origin.parents or origin in target.parents:
        raise ConfigError(f"output_dir: {output_dir} and {source} hold one another; choose another")
    check_replaceable(output_dir)

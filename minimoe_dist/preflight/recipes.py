"""Checks paths, corpora, models and launch of a run before torch is imported."""

import os
from collections.abc import Callable, Generator, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

from ..config import ConfigError, RunConfig, check_deepspeed_json, fit_to_ranks
from ..config.checks import check_world_size, exported_names, is_sparsification
from ..config.paths import check_cache_dir, check_output_dir
from ..corpus.sentencepieces import SENTENCEPIECE_SUFFIX
from ..corpus.tokenizing import (
    check_casing,
    check_fingerprint,
    check_tokenizer_files,
    embedding_rows,
    open_known_tokenizer,
    read_tokenizer_file,
    required_token_ids,
    vocabulary_fingerprint,
)
from ..data.indexed import find_corpora
from ..data.indexed_format import (
    IndexArrays,
    Manifest,
    check_arrays,
    check_unchanged,
    read_layout,
    read_manifest,
)
from ..durable import check_replaceable
from ..errors import UserError
from ..model_description import ModelDescription
from ..model_paths import (
    TOKENIZERS,
    cached_file,
    hub_is_reachable,
    not_downloadable,
    resolve_model_path,
)
from ..runs.folder import RunFolder
from ..runtime import DeviceType, Launch
from .models import check_embedded
from .problems import problems_of
from .students import describe_export, is_future_export, student_problems
from .teachers import check_teacher_weights, describe_teacher, teacher_problems

_TOKENIZER = "teacher.tokenizer_name_or_path"
# Refuses a corpus, by its prefix and manifest, that was built with another tokenizer.
_VocabularyCheck = Callable[[str, Manifest], None]


def check_stages(
    stages: Sequence[RunConfig],
    launch: Launch,
    device_type: DeviceType,
    runs_elsewhere: bool = False,
) -> None:
    """Refuses a recipe that would fail; arguments are those of :func:`problems_of_stages`.

    Raises:
        ConfigError: all of its problems, on one line.
    """
    problems = problems_of_stages(stages, launch, device_type, runs_elsewhere)
    if any(problems):
        raise ConfigError("; ".join(line for lines in problems for line in lines))


def problems_of_stages(
    stages: Sequence[RunConfig],
    launch: Launch,
    device_type: DeviceType,
    runs_elsewhere: bool = False,
) -> list[list[str]]:
    """Lists for each stage what would make it fail, one line a problem.

    A model that an earlier stage is still to train is taken for what its options say.

    Args:
        stages: stages of the recipe, in order.
        launch: the processes that they were started with.
        device_type: device that they would train on.
        runs_elsewhere: whether in another environment, as of a container, whose packages are not
            known here.
    """
    future_exports: dict[str, ModelDescription | None] = {}
    problems = []
    for stage in stages:
        stage_problems = _problems_of_stage(
            stage, launch, device_type, future_exports, runs_elsewhere
        )
        problems.append(list(dict.fromkeys(stage_problems)))
    return problems


def _problems_of_stage(
    config: RunConfig,
    launch: Launch,
    device_type: DeviceType,
    future_exports: dict[str, ModelDescription | None],
    runs_elsewhere: bool,
) -> Iterator[str]:
    """Yields a stage's problems, and adds its exports to ``future_exports``."""
    yield from problems_of(_check_batches, config, launch.world_size)
    yield from problems_of(check_world_size, config, launch.world_size)
    yield from problems_of(_check_device, config, device_type)
    if not runs_elsewhere:
        yield from problems_of(_check_trackers, config)
    yield from problems_of(check_output_dir, config.output_dir)
    if config.teacher.cache != "none":
        yield from problems_of(check_cache_dir, config.relation_cache_dir)
    yield from problems_of(RunFolder(Path(config.output_dir)).check)
    yield from problems_of(_check_exports, config)
    teacher = yield from model_problems(config, launch.world_size, future_exports)
    tokenizer = config.teacher.tokenizer_name_or_path
    if (
        tokenizer is None
        and teacher is not None
        and not is_future_export(teacher.path, future_exports)
    ):
        tokenizer = teacher.path
        if teacher.is_megatrons and not teacher.has_tokenizer:
            yield (
                f"{_TOKENIZER}: is missing, and {teacher.path}, a checkpoint of Megatron-LM's, has "
                "no vocabulary beside it; give the tokenizer that the teacher was trained with"
            )
            tokenizer = None
    check_vocabulary: _VocabularyCheck = _take_any
    if tokenizer is not None:
        try:
            check_vocabulary = _check_tokenizer(config, teacher, tokenizer)
        except (UserError, OSError) as error:
            yield str(error)
    yield from problems_of(_check_corpora, config, teacher, check_vocabulary)


def _check_batches(config: RunConfig, world_size: int) -> None:
    """Refuses ranks that do not divide the batch, and a JSON of other micro-batches than theirs."""
    fitted = fit_to_ranks(config, world_size)
    if config.training.global_batch_size is not None and config.parallel.deepspeed is not None:
        check_deepspeed_json(config.parallel.deepspeed, fitted)


def _check_trackers(config: RunConfig) -> None:
    for name in config.training.report_to:
        if find_spec(name) is None:
            package = {"mlflow": "mlflow-skinny"}.get(name, name)
            raise ConfigError(
                f"training.report_to: the package {name} is not installed; pip install {package}, "
                "or leave it out"
            )
    has_server = "MLFLOW_TRACKING_URI" in os.environ or find_spec("sqlalchemy") is not None
    if "mlflow" in config.training.report_to and not has_server:
        raise ConfigError(
            "training.report_to: mlflow has no MLFLOW_TRACKING_URI, and mlflow-skinny no store of "
            "its own; set it to your server's"
        )


def model_problems(
    config: RunConfig,
    world_size: int,
    future_exports: dict[str, ModelDescription | None],
    starts_here: bool = True,
) -> Generator[str, None, ModelDescription | None]:
    """Yields, one line each, how teacher and students do not fit a run; returns the teacher.

    Args:
        config: the run.
        world_size: number of its processes.
        future_exports: models that earlier stages will export; this run's are added.
        starts_here: whether models that are not on this machine are refused.
    """
    path = config.teacher.model_name_or_path
    teacher = future_exports.get(path)
    if not is_future_export(path, future_exports):
        try:
            teacher = describe_teacher(config, starts_here)
        except UserError as error:
            yield str(error)
        if teacher is not None:
            yield from problems_of(check_teacher_weights, config, teacher)
    if teacher is not None:
        yield from teacher_problems(config, teacher, world_size)
    if not is_sparsification(config):
        yield from student_problems(config, teacher, future_exports, starts_here)
    for student in config.students:
        export = describe_export(config, student, teacher, future_exports)
        future_exports[config.export_folder(student.name)] = export
    for name in exported_names(config):
        future_exports.setdefault(config.export_folder(name), None)
    return teacher


def _check_exports(config: RunConfig) -> None:
    """Refuses, before hours of training, export folders that could not be written."""
    for name in exported_names(config):
        check_replaceable(config.export_folder(name))


def _check_device(config: RunConfig, device_type: DeviceType) -> None:
    if config.parallel.precision == "fp16" and device_type == "cpu":
        raise ConfigError(
            "parallel.precision: 'fp16' needs a GPU and there is none usable; use bf16 or fp32"
        )
    if config.teacher.dtype == "float8" and device_type == "cpu":
        raise ConfigError(
            "teacher.dtype: 'float8' needs a GPU that multiplies it and there is none; use auto"
        )


def _take_any(prefix: str, manifest: Manifest) -> None:
    """Takes any corpus: nothing is known of the tokenizer."""


def _check_tokenizer(
    config: RunConfig, teacher: ModelDescription | None, name: str
) -> _VocabularyCheck:
    """Refuses a tokenizer that cannot be loaded, or has other tokens than the run needs.

    Returns:
        A check of corpora against it, as far as its own files tell.
    """
    if name.endswith(SENTENCEPIECE_SUFFIX) and os.path.isfile(name):
        return _take_any
    is_here = os.path.isdir(name) or os.path.isdir(resolve_model_path(name, _TOKENIZER))
    is_cached = is_here or any(cached_file(name, file) for file in TOKENIZERS)
    if not is_cached and not hub_is_reachable():
        raise not_downloadable(name, _TOKENIZER, "its tokenizer is not on this machine")
    known_tokenizer = open_known_tokenizer(name, config.teacher.do_lower_case)
    if known_tokenizer is not None:
        required_token_ids(known_tokenizer, name)
        if teacher is not None:
            check_embedded(_TOKENIZER, name, embedding_rows(known_tokenizer), teacher)
    elif is_here:
        check_tokenizer_files(name)
    tokenizer = known_tokenizer or read_tokenizer_file(name)
    if tokenizer is None:
        return _take_any
    size, fingerprint = embedding_rows(tokenizer), vocabulary_fingerprint(tokenizer)

    def check(prefix: str, manifest: Manifest) -> None:
        # A larger vocabulary may be this one with the tokens that transformers adds.
        if manifest.tokenizer is not None and manifest.tokenizer.vocab_size <= size:
            check_fingerprint(prefix, manifest.tokenizer, fingerprint, name)
        if known_tokenizer is not None:
            check_casing(prefix, manifest.tokenizer, known_tokenizer, name)

    return check


def _check_corpora(
    config: RunConfig, teacher: ModelDescription | None, check_vocabulary: _VocabularyCheck
) -> None:
    """Refuses corpora that are damaged, or of another vocabulary than teacher and tokenizer."""
    for corpus in config.data.record_path_or_regex + (config.data.heldout_path_or_regex or []):
        for prefix in find_corpora(corpus.path):
            layout = read_layout(prefix)
            check_arrays(prefix, layout, IndexArrays.map(prefix + ".idx", layout))
            manifest = read_manifest(prefix, layout)
            if manifest and teacher is not None and manifest.largest_id >= teacher.vocab_size:
                raise ConfigError(
                    f"{prefix}: token id {manifest.largest_id} is outside the vocabulary of "
                    f"{teacher.vocab_size} of teacher {teacher.path}; build the corpus with the "
                    "teacher's tokenizer"
                )
            if manifest:
                check_vocabulary(prefix, manifest)
                check_unchanged(prefix, manifest)

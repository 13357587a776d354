"""What can be refused before torch is imported: paths, corpora, models and launch of a run."""

import os
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path

from ..config import ConfigError, RunConfig
from ..config.checks import check_world_size, exported_names, is_sparsification
from ..config.paths import check_output_dir
from ..corpus.tokenizing import (
    check_casing,
    check_fingerprint,
    embedding_rows,
    open_known_tokenizer,
    read_tokenizer_file,
    vocabulary_fingerprint,
)
from ..data.indexed import find_corpora
from ..data.indexed_format import IndexArrays, Manifest, check_arrays, read_layout, read_manifest
from ..durable import check_replaceable
from ..errors import UserError
from ..model_description import TOKENIZERS, ModelDescription
from ..model_paths import cached_file, hub_is_reachable, not_downloadable, resolve_model_path
from ..runs.folder import RunFolder
from ..runtime import DeviceType, Launch
from .problems import problems_of
from .students import is_to_come, student_problems, student_to_come
from .teachers import describe_teacher, teacher_problems

_TOKENIZER = "teacher.tokenizer_name_or_path"


def check_stages(stages: Sequence[RunConfig], launch: Launch, device_type: DeviceType) -> None:
    """Refuses a recipe that would fail; arguments are those of :func:`problems_of_stages`.

    Raises:
        ConfigError: all of its problems, on one line.
    """
    found = problems_of_stages(stages, launch, device_type)
    if any(found):
        raise ConfigError("; ".join(line for lines in found for line in lines))


def problems_of_stages(
    stages: Sequence[RunConfig], launch: Launch, device_type: DeviceType
) -> list[list[str]]:
    """Each stage's problems, one line each: what would make it fail; nothing heavy is imported.

    A model that an earlier stage is still to train is taken for what its options say.

    Args:
        stages: of the recipe, in order.
        launch: the processes that they were started with.
        device_type: what they would train on.
    """
    to_come: dict[str, ModelDescription | None] = {}
    found = []
    for stage in stages:
        problems = _problems_of_stage(stage, launch, device_type, to_come)
        found.append(list(dict.fromkeys(problems)))
    return found


def _problems_of_stage(
    config: RunConfig,
    launch: Launch,
    device_type: DeviceType,
    to_come: dict[str, ModelDescription | None],
) -> Iterator[str]:
    """Yields a stage's problems, and adds what it will export to ``to_come``."""
    yield from problems_of(check_world_size, config, launch.world_size)
    yield from problems_of(_check_device, config, device_type)
    yield from problems_of(check_output_dir, config.output_dir)
    yield from problems_of(RunFolder(Path(config.output_dir)).check)
    yield from problems_of(_check_exports, config)
    teacher = yield from model_problems(config, launch.world_size, to_come)
    tokenizer = config.teacher.tokenizer_name_or_path
    if tokenizer is None and teacher is not None and not is_to_come(teacher.path, to_come):
        tokenizer = teacher.path
    if tokenizer is not None:
        yield from problems_of(_check_tokenizer_is_here, tokenizer)
    yield from problems_of(_check_corpora, config, teacher, tokenizer)


def model_problems(
    config: RunConfig,
    world_size: int,
    to_come: dict[str, ModelDescription | None],
    starts_here: bool = True,
) -> Generator[str, None, ModelDescription | None]:
    """Yields, one line each, in what teacher and students do not fit a run; returns the teacher.

    Args:
        config: the run.
        world_size: its processes.
        to_come: what earlier stages will export; gets what this run will.
        starts_here: refuse models that are not on this machine, too.
    """
    path = config.teacher.model_name_or_path
    teacher = to_come.get(path)
    if not is_to_come(path, to_come):
        try:
            teacher = describe_teacher(config, starts_here)
        except UserError as error:
            yield str(error)
    if teacher is not None:
        yield from teacher_problems(config, teacher, world_size)
    if not is_sparsification(config):
        yield from student_problems(config, teacher, to_come, starts_here)
    for student in config.students:
        export = student_to_come(config, student, teacher, to_come)
        to_come[config.export_folder(student.name)] = export
    for name in exported_names(config):
        to_come.setdefault(config.export_folder(name), None)
    return teacher


def _check_exports(config: RunConfig) -> None:
    """Finds out ahead of hours of training that an export could not take its place."""
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


def _check_tokenizer_is_here(name: str) -> None:
    """Refuses a hub's tokenizer that is neither here nor can be downloaded."""
    if os.path.isfile(name) or os.path.isdir(resolve_model_path(name, _TOKENIZER)):
        return
    if not any(cached_file(name, file) for file in TOKENIZERS) and not hub_is_reachable():
        raise not_downloadable(name, _TOKENIZER, "its tokenizer is not on this machine")


def _check_corpora(
    config: RunConfig, teacher: ModelDescription | None, tokenizer: str | None
) -> None:
    """Refuses corpora that are damaged, or of another vocabulary than teacher and tokenizer."""
    check_vocabulary = _vocabulary_check(tokenizer, config.teacher.do_lower_case)
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


def _vocabulary_check(
    name: str | None, do_lower_case: bool | None
) -> Callable[[str, Manifest], None]:
    """A check of corpora against the tokenizer's own file, for what that alone can tell."""
    tokenizer = None if name is None else read_tokenizer_file(name)
    if name is None or tokenizer is None:
        return lambda prefix, manifest: None
    size, fingerprint = embedding_rows(tokenizer), vocabulary_fingerprint(tokenizer)
    known = open_known_tokenizer(name, do_lower_case)

    def check(prefix: str, manifest: Manifest) -> None:
        # A larger vocabulary may be this one with the tokens that transformers adds.
        if manifest.tokenizer is not None and manifest.tokenizer.vocab_size <= size:
            check_fingerprint(prefix, manifest.tokenizer, fingerprint, name)
        if known is not None:
            check_casing(prefix, manifest.tokenizer, known, name)

    return check

"""What can be refused before torch is imported: paths, corpora, models and launch of a run."""

from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

from ..checkpoints.megatron.finding import is_megatron_checkpoint
from ..config import ConfigError, RunConfig
from ..config.checks import check_world_size, exported_names, is_sparsification
from ..config.paths import (
    check_masked_lm_head,
    check_output_dir,
    check_teacher_fits,
    check_teacher_layout,
    read_model_json,
)
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
from ..model_paths import resolve_model_path
from ..runs.folder import RunFolder
from ..runtime import DeviceType, Launch
from .students import check_students


def problems_of_stages(
    stages: Sequence[RunConfig], launch: Launch, device_type: DeviceType
) -> list[list[str]]:
    """Each stage's problems; of a stage whose teacher is still to be trained, only what is known.

    Args:
        stages: of the recipe, in order.
        launch: the processes that they were started with.
        device_type: what they would train on.
    """
    exported = {stage.export_folder(name) for stage in stages for name in exported_names(stage)}
    found = []
    for stage in stages:
        teacher = stage.teacher.model_name_or_path
        is_to_come = teacher in exported and not Path(teacher, "config.json").is_file()
        found.append(list(problems_before_start(stage, launch, device_type, exported, is_to_come)))
    return found


def problems_before_start(
    config: RunConfig,
    launch: Launch,
    device_type: DeviceType,
    to_come: Collection[str] = (),
    teacher_is_to_come: bool = False,
) -> Iterator[str]:
    """Yields, one line each, what would make the run fail; nothing heavy is imported.

    Args:
        config: the run.
        launch: the processes that it was started with.
        device_type: what it would train on.
        to_come: exports of the recipe's stages, which need not be there yet.
        teacher_is_to_come: leave out what needs the teacher's files.
    """
    checks: list[Callable[[], None]] = [
        lambda: check_world_size(config, launch.world_size),
        lambda: _check_device(config, device_type),
        lambda: check_output_dir(config.output_dir),
        lambda: RunFolder(Path(config.output_dir)).check(),
        lambda: _check_exports(config),
    ]
    if teacher_is_to_come:
        checks.append(lambda: _check_layout_to_come(config))
        checks.append(lambda: check_students(config, {}, to_come))
    else:
        checks.append(lambda: _check_teacher_layout(config, launch.world_size))
        checks += [lambda: _check_models(config, to_come), lambda: _check_corpora(config)]
    said: set[str] = set()
    for check in checks:
        try:
            check()
        except (UserError, OSError) as error:
            line = " ".join(str(error).split())
            if line not in said:
                said.add(line)
                yield line


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


def _check_teacher_layout(config: RunConfig, world_size: int) -> None:
    folder = _teacher_folder(config)
    check_teacher_layout(config, read_model_json(folder), folder, world_size)


def _check_layout_to_come(config: RunConfig) -> None:
    if config.teacher.layout == "tensor":
        raise ConfigError(
            f"teacher.layout: tensor is not for {config.teacher.model_name_or_path}, which an "
            "earlier stage trains; use zero3 or replicated there"
        )


def _check_models(config: RunConfig, to_come: Collection[str]) -> None:
    path, folder = config.teacher.model_name_or_path, _teacher_folder(config)
    teacher = read_model_json(folder)
    check_teacher_fits(config, teacher)
    if is_sparsification(config):
        check_masked_lm_head(path, folder, teacher)
    else:
        check_students(config, teacher, to_come)


def _teacher_folder(config: RunConfig) -> str:
    path = Path(config.teacher.model_name_or_path).expanduser()
    if not (path / "config.json").is_file() and is_megatron_checkpoint(path):
        raise ConfigError(
            f"teacher.model_name_or_path: {path} is a checkpoint of Megatron-LM's; convert it "
            f"first: minimoe-dist convert --input {path} --output {path}-huggingface"
        )
    return resolve_model_path(config.teacher.model_name_or_path)


def _check_corpora(config: RunConfig) -> None:
    vocab_size = read_model_json(_teacher_folder(config)).get("vocab_size")
    check_vocabulary = _vocabulary_check(
        config.teacher.tokenizer_name_or_path or config.teacher.model_name_or_path,
        config.teacher.do_lower_case,
    )
    for corpus in config.data.record_path_or_regex + (config.data.heldout_path_or_regex or []):
        for prefix in find_corpora(corpus.path):
            layout = read_layout(prefix)
            check_arrays(prefix, layout, IndexArrays.map(prefix + ".idx", layout))
            manifest = read_manifest(prefix, layout)
            if manifest and vocab_size is not None and manifest.largest_id >= vocab_size:
                raise ConfigError(
                    f"{prefix}: token id {manifest.largest_id} is outside the vocabulary of "
                    f"{vocab_size} of teacher {config.teacher.model_name_or_path}; build the "
                    "corpus with the teacher's tokenizer"
                )
            if manifest:
                check_vocabulary(prefix, manifest)


def _vocabulary_check(name: str, do_lower_case: bool | None) -> Callable[[str, Manifest], None]:
    """A check of corpora against the tokenizer's own file, for what that alone can tell."""
    tokenizer = read_tokenizer_file(name)
    if tokenizer is None:
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

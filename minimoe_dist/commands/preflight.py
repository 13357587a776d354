"""What can be refused before torch is imported: paths, corpora, models and launch of a run."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from minimoe_dist.config import ConfigError, RunConfig
from minimoe_dist.config.checks import BEST_CANDIDATE, check_world_size
from minimoe_dist.config.paths import (
    check_output_dir,
    check_same_vocabulary,
    check_teacher_fits,
    read_model_json,
)
from minimoe_dist.corpus.tokenizing import (
    check_fingerprint,
    read_tokenizer_file,
    vocabulary_fingerprint,
)
from minimoe_dist.data.indexed import find_corpora
from minimoe_dist.data.indexed_layout import (
    IndexArrays,
    Manifest,
    check_arrays,
    read_layout,
    read_manifest,
)
from minimoe_dist.models.submodels import Sizes, once_for_all_map
from minimoe_dist.runtime import DeviceType, Launch, resolve_model_path


def problems_of_stages(
    stages: Sequence[RunConfig], launch: Launch, device_type: DeviceType
) -> list[list[str]]:
    """Each stage's problems; of a stage whose teacher is still to be trained, only what is known.

    Args:
        stages: of the recipe, in order.
        launch: the processes that they were started with.
        device_type: what they would train on.
    """
    exported = {stage.export_folder(s.name) for stage in stages for s in stage.students}
    exported |= {stage.export_folder(BEST_CANDIDATE) for stage in stages}
    found = []
    for stage in stages:
        teacher = stage.teacher.model_name_or_path
        is_to_come = teacher in exported and not Path(teacher, "config.json").is_file()
        found.append(list(problems_before_start(stage, launch, device_type, is_to_come)))
    return found


def problems_before_start(
    config: RunConfig, launch: Launch, device_type: DeviceType, teacher_is_to_come: bool = False
) -> Iterator[str]:
    """Yields, one line each, what would make the run fail; nothing heavy is imported.

    Args:
        config: the run.
        launch: the processes that it was started with.
        device_type: what it would train on.
        teacher_is_to_come: leave out what needs the teacher's files.
    """
    checks: list[Callable[[], None]] = [
        lambda: check_world_size(config, launch.world_size),
        lambda: _check_device(config, device_type),
        lambda: check_output_dir(config.output_dir),
    ]
    if not teacher_is_to_come:
        checks += [lambda: _check_models(config), lambda: _check_corpora(config)]
    for check in checks:
        try:
            check()
        except (ValueError, OSError) as error:
            yield " ".join(str(error).split())


def _check_device(config: RunConfig, device_type: DeviceType) -> None:
    if config.parallel.precision == "fp16" and device_type == "cpu":
        raise ConfigError(
            "parallel.precision: 'fp16' needs a GPU and there is none usable; use bf16 or fp32"
        )


def _check_models(config: RunConfig) -> None:
    teacher = read_model_json(resolve_model_path(config.teacher.model_name_or_path))
    check_teacher_fits(config, teacher)
    for student in config.students:
        for option in ("model_name_or_path", "initial_weights"):
            path = getattr(student, option)
            if path is None:
                continue
            model = read_model_json(resolve_model_path(path))
            at = f"students.{student.name}"
            check_same_vocabulary(teacher, model, f"{at}.{option}", path)
            if student.sparsity is not None and "sparsity_map" in model:
                _check_sparsity(f"{at}.sparsity", student.sparsity, path, model)
                _check_width(config.objective.num_relation_heads, path, model)
        if student.ofa_layer and student.ofa_hidden:
            sizes = Sizes(
                student.layer, student.heads, student.hidden // student.heads, 4 * student.hidden
            )
            once_for_all_map(sizes, student.ofa_layer, student.ofa_hidden)


def _check_sparsity(option: str, sparsity: str, path: str, model: dict[str, Any]) -> None:
    there = model["sparsity_map"] or {}
    if sparsity not in there:
        choices = " ".join(there) or "none; sparsify it first"
        raise ConfigError(f"{option}: {sparsity} is not in the map of {path}; it has: {choices}")


def _check_width(relation_heads: int, path: str, model: dict[str, Any]) -> None:
    hidden = model.get("hidden_size", 0)
    if hidden % relation_heads:
        raise ConfigError(
            f"objective.num_relation_heads: {relation_heads} does not divide the hidden size "
            f"{hidden} of {path}; choose a divisor"
        )


def _check_corpora(config: RunConfig) -> None:
    teacher = resolve_model_path(config.teacher.model_name_or_path)
    vocab_size = read_model_json(teacher).get("vocab_size")
    check_vocabulary = _vocabulary_check(
        config.teacher.tokenizer_name_or_path or config.teacher.model_name_or_path
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


def _vocabulary_check(name: str) -> Callable[[str, Manifest], None]:
    """A check of corpora against the tokenizer's own file, for what that alone can tell."""
    tokenizer = read_tokenizer_file(name)
    if tokenizer is None:
        return lambda prefix, manifest: None
    size, fingerprint = len(tokenizer.get_vocab()), vocabulary_fingerprint(tokenizer)

    def check(prefix: str, manifest: Manifest) -> None:
        # A larger vocabulary may be this one with the tokens that transformers adds.
        if manifest.tokenizer is not None and manifest.tokenizer.vocab_size <= size:
            check_fingerprint(prefix, manifest.tokenizer, fingerprint, name)

    return check

"""Models out of checkpoints: students as they were after a step, of runs that need not be over."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from pydantic import ValidationError

from ..checkpoints.run import read_weights
from ..config import RunConfig
from ..corpus.tokenizing import load_tokenizer
from ..errors import UserError
from ..reporting.runs import (
    Export,
    SavedStudent,
    find_export,
    find_saved,
    student_of_model,
)
from ..runtime import logger
from ..train.optimizer_state import MASTER
from .model_types import Lesson, make_objective, make_student, teacher_config
from .results import Heldout, export_all

_log = logger("checkpoint")


@contextmanager
def opened_model(source: str, student: str | None, step: int | str | None) -> Iterator[Export]:
    """Yields a model's folder: of an export, or, as long as it is open, of a checkpoint.

    Args:
        source: a model's folder or a run's; with ``step`` a run's.
        student: which one of several.
        step: of the checkpoint, or a word for the newest; None means the export.

    Raises:
        UserError: there is no such model.
    """
    if step is None:
        yield find_export(source, student)
        return
    saved = find_saved(source, step, student)
    with TemporaryDirectory(prefix="minimoe_dist.") as folder:
        yield _export(saved, Path(folder))


def _export(saved: SavedStudent, folder: Path) -> Export:
    """Writes the model of a checkpoint, and its sub-models, below a folder."""
    config = _recipe(saved)
    names = [student.name for student in config.students]
    # Of a once-for-all student's sub-model too: its name begins with the student's.
    whole = student_of_model(saved.name, names)
    assert whole is not None, "it was found by it"
    path = config.teacher.model_name_or_path
    lesson = Lesson(make_objective(config, None), teacher_config(path), None)
    student_config = make_student(config, names.index(whole), lesson).config
    tokenizer = load_tokenizer(
        config.teacher.tokenizer_name_or_path or path,
        config.teacher.do_lower_case,
        config.teacher.use_slow_tokenizer,
    )
    weights = read_weights(saved.checkpoint, whole, MASTER)
    unknown = Heldout({}, {})
    export_all(whole, student_config, weights, folder / whole, tokenizer, unknown)
    if not (folder / saved.name).is_dir():
        there = ", ".join(sorted(path.name for path in folder.iterdir()))
        raise UserError(f"--student: {saved.name} is not among the models of the run: {there}")
    _log.info("%s of %s", saved.name, saved.checkpoint)
    return Export(folder / saved.name, saved.name, saved.run, saved.step, saved.checkpoint)


def _recipe(saved: SavedStudent) -> RunConfig:
    try:
        return RunConfig.model_validate(saved.run.recipe.tree)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        option = ".".join(map(str, problem["loc"]))
        raise UserError(
            f"{saved.checkpoint}: its recipe does not hold any more ({option}: {problem['msg']}); "
            "export it with the version that wrote it"
        ) from error

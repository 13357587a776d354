"""Reads folders of runs, and finds exports in them.

A lone evaluation may stand for a run. Only JSON is read here.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..config.model_types import SPARSIFICATION
from ..config.schema import RunOptions
from ..errors import UserError
from ..model_paths import resolve_model_path
from ..runs.checkpoints import PROGRESS, SavedRun, checkpoint_of
from ..runs.evaluations import Evaluation, find_evaluation
from ..runs.folder import EXPORT, METRICS, RESULTS, SUMMARY, RunFolder
from ..runs.metrics import SavedMetrics
from ..runs.options import SavedRecipe
from ..runs.reading import parse_object, read_text
from ..runs.summaries import StudentSummary, Summary
from ..runs.tuning import TuningResults

_MOST_FOLDERS_DOWN = 2


@dataclass(frozen=True)
class Run:
    """The files of one run.

    Attributes:
        folder: folder of the run, or the one that holds a lone evaluation.
        name: name for people; unique among the runs that were read together.
        summary: summary of ``distill``; None where that is not finished, or was another command.
        metrics: records of training and evaluations.
        results: results of ``finetune``.
        evaluations: results of ``evaluate``, by student.
        saved_recipe: the recipe as a checkpoint has it, where the run was read for one.
    """

    folder: RunFolder
    name: str
    summary: Summary | None = None
    metrics: SavedMetrics = field(default_factory=SavedMetrics)
    results: TuningResults | None = None
    evaluations: Mapping[str, Evaluation] = field(default_factory=dict)
    saved_recipe: SavedRecipe = field(default_factory=SavedRecipe)

    @property
    def students(self) -> Mapping[str, StudentSummary]:
        """The summary's entries of students; empty for runs without."""
        return self.summary.students if self.summary else {}

    @property
    def recipe(self) -> SavedRecipe:
        """The recipe as it was resolved; its tree is empty where neither file has it."""
        return self.summary.options if self.summary else self.saved_recipe


@dataclass(frozen=True)
class Export:
    """A model's folder, the run that it came from where that is known, and the step of it.

    Attributes:
        folder: of the model.
        name: the student's in its run.
        run: None where it is not known.
        step: of the run after which it was saved; None of a run's end.
        checkpoint: which that is.
    """

    folder: Path
    name: str
    run: Run | None
    step: int | None = None
    checkpoint: Path | None = None


@dataclass(frozen=True)
class SavedStudent:
    """A student in a checkpoint of a run.

    Attributes:
        run: without what only its end tells.
        checkpoint: the checkpoint's folder.
        step: after which it was written.
        name: the student's, or that of a once-for-all student's sub-model.
    """

    run: Run
    checkpoint: Path
    step: int
    name: str


def find_saved(source: str, step: int | str, student: str | None = None) -> SavedStudent:
    """Finds a student in a run's checkpoint.

    Args:
        source: the run's folder.
        step: or "newest".
        student: name of the student, where the run has several.

    Raises:
        UserError: source is no run of ``distill`` with such a checkpoint or student.
    """
    run = RunFolder(Path(source))
    if not run.path.is_dir():
        raise UserError(f"{source}: no such folder: give the folder of a run")
    if stages := [path.name for path in run.path.iterdir() if RunFolder(path).checkpoints.is_dir()]:
        raise UserError(f"--step: {source} has stages; give {source}/{sorted(stages)[0]}, or so")
    found, checkpoint = checkpoint_of(run, step)
    facts = SavedRun.read(checkpoint / PROGRESS).facts.tree
    # Beside the options, a checkpoint's facts are of corpora and batches.
    options = {key: value for key, value in facts.items() if key in RunOptions.model_fields}
    recipe = SavedRecipe.of(options, str(checkpoint / PROGRESS))
    names = [one.name for one in recipe.students]
    makes_map = not any(student.get("sparsity") for student in options.get("students") or [{}])
    if not names or (recipe.model_type == SPARSIFICATION and makes_map):
        raise UserError(f"--step: {checkpoint} is not of distill, which alone saves students")
    if student is None and len(names) > 1:
        raise UserError(f"{source}: has {', '.join(sorted(names))}: choose one with --student")
    name = student or names[0]
    if student_of_model(name, names) is None:
        raise UserError(f"--student: {name} is not among {source}'s students: {', '.join(names)}")
    return SavedStudent(
        Run(run, run.path.absolute().name, saved_recipe=recipe), checkpoint, found, name
    )


def student_of_model(name: str, students: Sequence[str]) -> str | None:
    """Returns the student that a model is, or is a sub-model of; None where it is none's."""
    return max((one for one in students if f"{name}_".startswith(f"{one}_")), key=len, default=None)


def read_runs(paths: Sequence[str]) -> list[Run]:
    """Reads the runs that paths name: their folders, folders of these, or evaluations' files.

    Raises:
        UserError: a path holds no run, or a file of a run is not readable.
    """
    folders: list[Path] = []
    for path in paths:
        folders += [folder for folder in _run_folders(Path(path)) if folder not in folders]
    names = _short_names([str(folder) for folder in folders])
    return [_read(folder, name) for folder, name in zip(folders, names, strict=True)]


def _run_folders(path: Path) -> list[Path]:
    if path.is_file() and path.suffix == ".json":
        return [path]
    if not path.is_dir():
        raise UserError(f"{path}: no such folder: give the output_dir of a run")
    if _is_run(path):
        return [path]
    folders = [folder for folder in _below(path, _MOST_FOLDERS_DOWN) if _is_run(folder)]
    if not folders:
        raise UserError(
            f"{path}: not the folder of a run (none of {SUMMARY}, {METRICS}, {RESULTS}, "
            "evaluation.json in it): give the output_dir of distill, finetune or evaluate"
        )
    return folders


def _below(folder: Path, levels: int) -> Iterator[Path]:
    for child in sorted(path for path in folder.iterdir() if path.is_dir()):
        yield child
        if levels > 1 and not _is_run(child):
            yield from _below(child, levels - 1)


def _is_run(path: Path) -> bool:
    run = RunFolder(path)
    if run.summary.is_file() and not run.metrics.is_file():
        # The demo's own summary tells of the run in the folder below it.
        return "students" in parse_object(read_text(run.summary), str(run.summary))
    files = (run.summary, run.metrics, run.results, run.evaluation())
    return any(file.is_file() for file in files)


def _read(path: Path, name: str) -> Run:
    if path.is_file():
        evaluation = find_evaluation(path)
        if evaluation is None:
            raise UserError(f"{path}:1: not an evaluation: give a file that evaluate wrote")
        return Run(RunFolder(path.parent), name, evaluations={evaluation.student: evaluation})
    run = RunFolder(path)
    evaluations = [
        evaluation for file in run.evaluations() if (evaluation := find_evaluation(file))
    ]
    return Run(
        run,
        name,
        Summary.read(run.summary) if run.summary.is_file() else None,
        SavedMetrics.read(run.metrics) if run.metrics.is_file() else SavedMetrics(),
        TuningResults.read(run.results) if run.results.is_file() else None,
        {evaluation.student: evaluation for evaluation in evaluations},
    )


def _short_names(paths: Sequence[str]) -> list[str]:
    """Returns the fewest last parts of each path that tell all of them apart."""
    parts = [Path(path).absolute().with_suffix("").parts for path in paths]
    for count in range(1, max((len(path_parts) for path_parts in parts), default=1) + 1):
        names = ["/".join(path_parts[-count:]) for path_parts in parts]
        if len(set(names)) == len(names):
            return names
    return list(paths)


def basename(path: str) -> str:
    """Returns the last part of a path, or ``package:NAME`` as it is."""
    return path if path.startswith("package:") else path.rstrip("/").rpartition("/")[2] or path


def _exported(folder: Path) -> Export:
    """Returns a model's folder, with the run whose export it is, if any."""
    absolute = folder.absolute()
    is_fine_tuned = absolute.name == EXPORT and RunFolder(absolute.parent).results.is_file()
    if is_fine_tuned:
        return Export(folder, absolute.parent.name, _read(absolute.parent, absolute.parent.name))
    above = absolute.parents[1] if absolute.parent.name == EXPORT else None
    run = _read(above, above.name) if above is not None and _is_run(above) else None
    return Export(folder, absolute.name, run)


def find_export(source: str, student: str | None = None) -> Export:
    """Finds a model's folder by itself, or by the run that exported it.

    Args:
        source: a Hugging Face folder, ``package:NAME``, or a run's folder.
        student: name of the student, where a run has several.

    Raises:
        UserError: source is none of these, or the run has several students and none is chosen.
    """
    if source.startswith("package:"):
        return Export(Path(resolve_model_path(source)), source.removeprefix("package:"), None)
    folder = Path(source)
    if (folder / "config.json").is_file():
        if student is not None:
            raise UserError(f"--student: {source} is one model already; leave --student out")
        return _exported(folder)
    if not folder.is_dir():
        raise UserError(f"{source}: no such folder: give a model's folder or a run's")
    exported = RunFolder(folder).exports
    if (exported / "config.json").is_file():
        return Export(exported, folder.absolute().name, _read(folder, folder.name))
    runs = [
        candidate for candidate in _run_folders(folder) if RunFolder(candidate).exports.is_dir()
    ]
    if len(runs) != 1:
        raise UserError(
            f"{source}: holds {len(runs)} runs with exports: give one run's folder"
            if runs
            else f"{source}: no export in it: finish the run, give --step newest for what it has "
            "saved so far, or a model's folder"
        )
    exports = RunFolder(runs[0]).exported()
    if student is None and len(exports) > 1:
        raise UserError(f"{source}: has {', '.join(sorted(exports))}: choose one with --student")
    if not exports or (student is not None and student not in exports):
        available = ", ".join(sorted(exports)) or "none yet"
        raise UserError(
            f"--student: {student or 'none'} is not among {source}'s exports: {available}"
        )
    name = student or next(iter(exports))
    return Export(exports[name], name, _read(runs[0], runs[0].name))

"""The places of all files of a run."""

import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError

EXPORT = "export"
SUMMARY, METRICS, RESULTS = "summary.json", "metrics.jsonl", "results.json"
_EVALUATION = "evaluation"


@dataclass(frozen=True)
class RunFolder:
    """The layout of ``output_dir``.

    <output_dir>/
        run.lock                        held while the run is alive (:mod:`.locks`)
        metrics.jsonl                   losses, norms and rates (:mod:`.metrics`)
        tensorboard/                    the same
        trackers.json                   the run's ids at trackers (W&B, MLflow), where it has some
        metrics.jsonl.damaged           lines that could not be read when the run went on
        starts.jsonl                    starts and ends (:mod:`.launches`, of jobs :mod:`.starts`)
        checkpoints/                    of distilling and sparsifying (:mod:`.checkpoints`)
        first_weights/STUDENT/          those that were made at the start of the run
        first_weights/STUDENT.json      what they were made of
        relation_cache/                 the teacher's signals, where they are kept and nowhere else
        cells/NAME/                     of fine-tuning: a folder like this one each
            result.json                 of a cell that is done
            model/, checkpoints/        of the best cell so far; of one that is under way
        export/STUDENT/                 of distilling and sparsifying
        export/                         of fine-tuning
        summary.json                    of distilling and sparsifying, at the end
        results.json                    of fine-tuning, at the end
        evaluation.json                 of evaluating; evaluation_STUDENT.json of several students
        step_N_evaluation_STUDENT.json  of evaluating a checkpoint
        curves.png, sub_models.png
        submissions/N/                  of Slurm jobs (:mod:`.submissions`)
    """

    path: Path

    @property
    def lock(self) -> Path:
        return self.path / "run.lock"

    @classmethod
    def locks(cls, folder: Path) -> Iterator[Path]:
        """Yields the locks of the run in a folder, or of a chain's stages below it."""
        for run in (cls(folder), *map(cls, sorted(folder.glob("*")))):
            if run.lock.is_file():
                yield run.lock

    @property
    def metrics(self) -> Path:
        return self.path / METRICS

    @property
    def trackers(self) -> Path:
        return self.path / "trackers.json"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def first_weights(self) -> Path:
        return self.path / "first_weights"

    @property
    def relation_cache(self) -> Path:
        return self.path / "relation_cache"

    @property
    def cells(self) -> Path:
        return self.path / "cells"

    @property
    def exports(self) -> Path:
        """The exported model of fine-tuning; else the folder of all exports."""
        return self.path / EXPORT

    def export(self, student: str) -> Path:
        """Returns the folder of a student's exported model, by its name with the run's suffix."""
        return self.exports / student

    def exported(self) -> dict[str, Path]:
        """Lists the folders of the students that are exported, by name."""
        configs = self.exports.glob("*/config.json")
        return {path.parent.name: path.parent for path in sorted(configs)}

    @property
    def summary(self) -> Path:
        return self.path / SUMMARY

    @property
    def results(self) -> Path:
        return self.path / RESULTS

    def evaluation(self, student: str | None = None) -> Path:
        """Returns the file that evaluating writes, of one of several students where it is named."""
        name = _EVALUATION if student is None else f"{_EVALUATION}_{student}"
        return self.path / f"{name}.json"

    def evaluation_of_step(self, student: str, step: int) -> Path:
        """Returns the file of evaluating a checkpoint, which is not among :meth:`evaluations`."""
        return self.path / f"step_{step:08d}_{_EVALUATION}_{student}.json"

    def evaluations(self) -> Iterator[Path]:
        """Yields all evaluations that were written."""
        yield from sorted(self.path.glob(f"{_EVALUATION}*.json"))

    @property
    def curves(self) -> Path:
        return self.path / "curves.png"

    @property
    def sub_models(self) -> Path:
        return self.path / "sub_models.png"

    @property
    def starts(self) -> Path:
        return self.path / "starts.jsonl"

    @property
    def submissions(self) -> Path:
        return self.path / "submissions"

    def cell(self, name: str) -> "CellFolder":
        """Returns the folder of one training of fine-tuning's grid."""
        return CellFolder(self.cells / name)

    def check(self) -> None:
        """Refuses a folder in which a name is taken by something of another kind.

        Raises:
            UserError: one line that names it.
        """
        folders = (self.path, self.tensorboard, self.checkpoints, self.cells, self.exports,
                   self.submissions, self.first_weights)  # fmt: skip
        files = (self.lock, self.metrics, self.summary, self.results,
                 self.curves, self.sub_models, self.starts)  # fmt: skip
        for path in folders:
            _check_kind(path, "folder")
        for path in (*files, *self.evaluations()):
            _check_kind(path, "file")
        for path in sorted(self.cells.glob("*")):
            if path.is_dir():
                CellFolder(path).check()


@dataclass(frozen=True)
class CellFolder:
    """The layout of one training of fine-tuning's grid."""

    path: Path

    @property
    def result(self) -> Path:
        return self.path / "result.json"

    @property
    def model(self) -> Path:
        return self.path / "model"

    @property
    def checkpoints(self) -> Path:
        return RunFolder(self.path).checkpoints

    def check(self) -> None:
        """Refuses a cell in which a name is taken by something of another kind.

        Raises:
            UserError: one line that names it.
        """
        for path in (self.model, self.checkpoints):
            _check_kind(path, "folder")
        _check_kind(self.result, "file")


def _check_kind(path: Path, expected: str) -> None:
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        if path.is_symlink():
            raise UserError(
                f"output_dir: {path} is a link to nothing: remove it, or choose another folder"
            ) from None
        return
    except OSError as error:
        raise UserError(
            f"output_dir: {path}: {error.strerror}: remove it, or choose another folder"
        ) from None
    is_right = stat.S_ISDIR(mode) if expected == "folder" else stat.S_ISREG(mode)
    if not is_right:
        raise UserError(
            f"output_dir: {path} is no {expected}: move it away, or choose another folder"
        )

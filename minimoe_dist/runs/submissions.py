"""The submissions of a run: ``<output_dir>/submissions/<n>/``, a folder each time.

It holds ``run.yaml`` (the resolved run, which the job reads), ``job.sbatch`` (as given to sbatch)
and ``submission.json`` (job number, code version, environment). A job that waits to be requeued
keeps its own folder when the run is submitted anew.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from .folder import RunFolder
from .reading import Record


class Submission(Record):
    """The record of a submission, ``submission.json``.

    Attributes:
        time: ISO 8601, UTC.
        recipe, overrides, options: as they were given.
        code, environment: of the one who submitted.
        job: number.
        command: of the job.
        log: its file.
    """

    time: str
    recipe: str | None = None
    overrides: list[str] = Field(default_factory=list)
    options: dict[str, Any] = Field(default_factory=dict)
    code: dict[str, Any] = Field(default_factory=dict)
    environment: dict[str, Any] = Field(default_factory=dict)
    job: str
    command: str | None = None
    log: str | None = None


@dataclass(frozen=True)
class SubmissionFolder:
    """The layout of a submission."""

    path: Path

    @property
    def recipe(self) -> Path:
        return self.path / "run.yaml"

    @property
    def script(self) -> Path:
        return self.path / "job.sbatch"

    @property
    def record(self) -> Path:
        return self.path / "submission.json"


def next_submission(run: Path) -> SubmissionFolder:
    """Returns the folder of a run's next submission, which is not made yet."""
    folder = RunFolder(run).submissions
    return SubmissionFolder(folder / str(max(_numbers(folder), default=0) + 1))


def last_submission(run: Path) -> Submission | None:
    """Reads the record of a run's last submission; None where there is none."""
    folder = RunFolder(run).submissions
    for number in sorted(_numbers(folder), reverse=True):
        # It has none where sbatch refused it, or the disk was full.
        if record := Submission.find(SubmissionFolder(folder / str(number)).record):
            return record
    return None


def _numbers(folder: Path) -> list[int]:
    return [int(path.name) for path in folder.glob("*") if path.name.isdecimal()]

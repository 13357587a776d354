"""What was submitted of a run: ``<output_dir>/submissions/<n>/``, a folder each time.

It holds ``run.yaml`` (the resolved run, which the job reads), ``job.sbatch`` (as given to sbatch)
and ``submission.json`` (job number, code version, environment). A job that waits to be requeued
keeps its own folder when the run is submitted anew.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..durable import write_json


def next_folder(run: Path) -> Path:
    """The folder of a run's next submission; not made yet."""
    numbers = [int(path.name) for path in _folders(run)]
    return run / "submissions" / str(max(numbers, default=0) + 1)


def last_submission(run: Path) -> dict[str, Any] | None:
    """The record of a run's last submission; None where there is none."""
    for folder in sorted(_folders(run), key=lambda path: int(path.name), reverse=True):
        try:
            record = json.loads((folder / "submission.json").read_text("utf-8"))
        except (OSError, ValueError):  # sbatch refused it, or the disk was full
            continue
        return {**record, "folder": str(folder)}
    return None


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Writes a submission's record, whole or not at all."""
    write_json(folder / "submission.json", record)


def _folders(run: Path) -> list[Path]:
    return [path for path in run.glob("submissions/*") if path.name.isdigit()]

"""Folders of finished runs, and what they say about themselves.

`distill` leaves ``summary.json``, ``metrics.jsonl`` and ``export/STUDENT``; `finetune` leaves
``results.json``; `evaluate` adds ``evaluation.json`` (``evaluation_STUDENT.json`` where a run has
several students), which may also stand alone. Only JSON is read here.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..model_paths import resolve_model_path

SUMMARY, METRICS, RESULTS, EVALUATION = (
    "summary.json",
    "metrics.jsonl",
    "results.json",
    "evaluation.json",
)
_MOST_FOLDERS_DOWN = 2


@dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        folder: the run's, or the one that holds a lone evaluation.
        name: for people; unique among the runs that were read together.
        summary: of `distill`; empty where it is not finished, or was another command.
        records: of ``metrics.jsonl``, in order.
        results: of `finetune`; empty without.
        evaluations: of `evaluate`, by student.
    """

    folder: Path
    name: str
    summary: Mapping[str, Any] = field(default_factory=dict)
    records: Sequence[Mapping[str, Any]] = ()
    results: Mapping[str, Any] = field(default_factory=dict)
    evaluations: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def students(self) -> Mapping[str, Mapping[str, Any]]:
        """The summary's entries of students; empty for runs without."""
        students = self.summary.get("students", {})
        return students if isinstance(students, Mapping) else {}

    @property
    def options(self) -> Mapping[str, Any]:
        """The recipe as it was resolved."""
        options = self.summary.get("options", {})
        return options if isinstance(options, Mapping) else {}


@dataclass(frozen=True)
class Export:
    """A model's folder, and the run that it came from where that is known."""

    folder: Path
    name: str
    run: Run | None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        UserError: the file is no JSON object; names file and line.
    """
    try:
        value = json.loads(path.read_text("utf-8"))
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}:{error.lineno}: not JSON ({error.msg}): run the command that wrote it again"
        ) from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason}): give another file") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}:1: not a JSON object: give a file that a command wrote")
    return value


def read_records(path: Path) -> list[dict[str, Any]]:
    """The lines of ``metrics.jsonl``; one that is still being written is left out.

    Raises:
        UserError: a line is no JSON object with a step; names file and line.
    """
    records = []
    lines = path.read_bytes().decode("utf-8", "replace").splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        if not line.endswith("\n"):
            break
        try:
            record = json.loads(line)
            float(record["step"])
        except (ValueError, KeyError, TypeError):
            raise UserError(
                f"{path}:{number}: not a record of a run: take the line out, or the run again"
            ) from None
        records.append(record)
    return records


def read_runs(paths: Sequence[str]) -> list[Run]:
    """The runs that paths name: folders of runs, folders of such folders, or evaluations' files.

    Raises:
        UserError: a path holds no run, or a file of one is not readable.
    """
    folders: list[Path] = []
    for path in paths:
        folders += [found for found in _run_folders(Path(path)) if found not in folders]
    names = _short_names([str(folder) for folder in folders])
    return [_read(folder, name) for folder, name in zip(folders, names, strict=True)]


def _run_folders(path: Path) -> list[Path]:
    if path.is_file() and path.suffix == ".json":
        return [path]
    if not path.is_dir():
        raise UserError(f"{path}: no such folder: give the output_dir of a run")
    if _is_run(path):
        return [path]
    found = [one for one in _below(path, _MOST_FOLDERS_DOWN) if _is_run(one)]
    if not found:
        raise UserError(
            f"{path}: not the folder of a run (none of {SUMMARY}, {METRICS}, {RESULTS}, "
            f"{EVALUATION} in it): give the output_dir of distill, finetune or evaluate"
        )
    return found


def _below(folder: Path, levels: int) -> Iterator[Path]:
    for child in sorted(one for one in folder.iterdir() if one.is_dir()):
        yield child
        if levels > 1 and not _is_run(child):
            yield from _below(child, levels - 1)


def _is_run(folder: Path) -> bool:
    if (folder / SUMMARY).is_file():
        # The demo's own summary tells of the run in the folder below it.
        return (folder / METRICS).is_file() or "students" in read_json(folder / SUMMARY)
    return any((folder / name).is_file() for name in (METRICS, RESULTS, EVALUATION))


def _read(path: Path, name: str) -> Run:
    if path.is_file():
        evaluation = read_json(path)
        if evaluation.get("kind") != "evaluation":
            raise UserError(f"{path}:1: not an evaluation: give a file that evaluate wrote")
        return Run(path.parent, name, evaluations={str(evaluation["student"]): evaluation})
    there = {one: (path / one).is_file() for one in (SUMMARY, METRICS, RESULTS)}
    evaluations = [read_json(one) for one in sorted(path.glob("evaluation*.json"))]
    return Run(
        path,
        name,
        read_json(path / SUMMARY) if there[SUMMARY] else {},
        read_records(path / METRICS) if there[METRICS] else (),
        read_json(path / RESULTS) if there[RESULTS] else {},
        {str(one["student"]): one for one in evaluations if one.get("kind") == "evaluation"},
    )


def _short_names(paths: Sequence[str]) -> list[str]:
    """The fewest last parts of each path that tell all of them apart."""
    parts = [Path(path).absolute().with_suffix("").parts for path in paths]
    for count in range(1, max((len(one) for one in parts), default=1) + 1):
        names = ["/".join(one[-count:]) for one in parts]
        if len(set(names)) == len(names):
            return names
    return list(paths)


def _exported(folder: Path) -> Export:
    """A model's folder, with the run that it stands in if it does."""
    whole = folder.absolute()
    if whole.name == "export" and (whole.parent / RESULTS).is_file():  # of a fine-tuning run
        return Export(folder, whole.parent.name, _read(whole.parent, whole.parent.name))
    above = whole.parents[1] if whole.parent.name == "export" else None
    run = _read(above, above.name) if above is not None and _is_run(above) else None
    return Export(folder, whole.name, run)


def find_export(source: str, student: str | None = None) -> Export:
    """A model's folder: given itself, or as the run that exported it.

    Args:
        source: a Hugging Face folder, ``package:NAME``, or a run's folder.
        student: which one of a run with several.

    Raises:
        UserError: neither, or the run has several students and none is chosen.
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
    if (folder / "export" / "config.json").is_file():
        return Export(folder / "export", folder.absolute().name, _read(folder, folder.name))
    runs = [one for one in _run_folders(folder) if (one / "export").is_dir()]
    if len(runs) != 1:
        raise UserError(
            f"{source}: holds {len(runs)} runs with exports: give one run's folder"
            if runs
            else f"{source}: no export in it: finish the run, or give a model's folder"
        )
    exports = {one.parent.name: one.parent for one in runs[0].glob("export/*/config.json")}
    if student is None and len(exports) > 1:
        raise UserError(f"{source}: has {', '.join(sorted(exports))}: choose one with --student")
    if not exports or (student is not None and student not in exports):
        there = ", ".join(sorted(exports)) or "none yet"
        raise UserError(f"--student: {student or 'none'} is not among {source}'s exports: {there}")
    name = student or next(iter(exports))
    return Export(exports[name], name, _read(runs[0], runs[0].name))

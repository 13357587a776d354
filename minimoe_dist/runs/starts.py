"""A run's starts and ends as Slurm jobs, and whether it makes progress.

``<output_dir>/starts.jsonl`` has one JSON object a line, appended by the job on its first node:

    {"event": "start", "run_id": "minimoe-3f9c02", "job": "4711", "restart": 1, "nodes": "n[1-2]",
     "progress": {".": 12000}, "code": {"version": "0.1.0"}, "time": "2026-01-31T12:00:00+00:00"}
    {"event": "end", "job": "4711", "restart": 1, "status": 75, "progress": {".": 15000}, …}
    {"event": "stop", "job": "4711", "restart": 3, "reason": "three restarts …", …}

Other lines, of every start by any launcher, are those of :mod:`.launches`.
"""

import json
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field

from ..durable import flush_stream
from ..errors import UserError
from .checkpoints import FINISHED, SavedFacts
from .folder import RunFolder
from .reading import Record, parse_object, read_bytes

MOST_RESTARTS_WITHOUT_PROGRESS = 3
_MAX_DESCRIBED = 6
Line = TypeVar("Line", bound=Record)


class Event(Record):
    """A line of ``starts.jsonl``.

    Attributes:
        event: what happened.
        job: number of the Slurm job; `restart` counts how often that was requeued.
        run_id: the name under which all starts of a run go; of a start.
        nodes: as Slurm lists them; of a start.
        progress: see :func:`.checkpoints.progress_of`; of a start or an end.
        plans: batch and steps of each stage by its folder's path; of a start.
        code: version and revision; of a start.
        status: exit status; of an end.
        reason: of a stop.
        time: ISO 8601, UTC.
    """

    event: Literal["start", "end", "stop"]
    job: str = ""
    restart: int = 0
    run_id: str | None = None
    nodes: str = ""
    progress: dict[str, int] = Field(default_factory=dict)
    plans: dict[str, SavedFacts] = Field(default_factory=dict)
    code: dict[str, Any] = Field(default_factory=dict)
    status: int | None = None
    reason: str = ""
    time: str = ""


def read_events(folder: Path) -> list[Event]:
    """Reads all whole records of a run's jobs, oldest first; none where there is no file."""
    return read_lines(folder, Event)


def read_lines(folder: Path, kind: type[Line]) -> list[Line]:
    """Reads the lines of ``starts.jsonl`` that are of one kind, oldest first."""
    path, found = RunFolder(folder).starts, []
    try:
        lines = read_bytes(path).splitlines()
    except UserError:
        return []
    for line in lines:
        with suppress(UserError):  # of another kind or version, or cut off by a lost node
            found.append(kind.of(parse_object(line, str(path)), str(path)))
    return found


def add_event(folder: Path, event: Event) -> None:
    """Appends one record with the time, and puts it on disk."""
    append_record(RunFolder(folder).starts, event.as_json())


def append_record(path: Path, values: Mapping[str, Any]) -> None:
    """Appends a line of JSON with the time to a file, and puts it on disk."""
    time = datetime.now(UTC).isoformat(timespec="seconds")
    line = json.dumps({**values, "time": time})
    with path.open("a+b") as file:
        # A line that a lost node cut off must not swallow this one.
        whole = file.tell() == 0 or path.read_bytes().endswith(b"\n")
        file.write((b"" if whole else b"\n") + line.encode() + b"\n")
        flush_stream(file)


def run_id(folder: Path, events: Sequence[Event]) -> str:
    """Returns the name of all starts of a run: its folder's, with a mark of the first start."""
    ids = [event.run_id for event in events if event.run_id is not None]
    return ids[-1] if ids else f"{folder.resolve().name}-{secrets.token_hex(3)}"


def restarts_without_progress(
    events: Sequence[Event], job: str, progress: Mapping[str, int]
) -> int:
    """Counts the restarts of a job, the last ones in a row, that began where the run is now.

    Args:
        events: of the run.
        job: its number; other jobs' starts do not count.
        progress: of the run now, from `progress_of`.
    """
    count = 0
    for event in reversed(events):
        if event.event != "start" or event.job != job:
            continue
        if not event.restart or event.progress != progress:
            break
        count += 1
    return count


def describe_progress(progress: Mapping[str, int]) -> str:
    """Describes progress in a few words: "step 120", or each stage's."""
    if not progress:
        return "step 0"
    if len(progress) > _MAX_DESCRIBED:
        finished = sum(step == FINISHED for step in progress.values())
        return f"{finished} of {len(progress)} cells finished"
    states = {
        name: "finished" if step == FINISHED else f"step {step}" for name, step in progress.items()
    }
    return ", ".join(state if name == "." else f"{name} {state}" for name, state in states.items())

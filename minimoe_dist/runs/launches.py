"""Every start of a run and why it ended, by whichever launcher: more lines of ``starts.jsonl``.

Rank 0 appends them. A start is written before torch is imported, its hosts once all ranks have met,
its end as it ends; one that was killed gets its end from the next start:

    {"event": "launch", "id": "5c0e9f12", "command": ["distill", "--config", "run.yaml"],
     "host": "n1", "launcher": "torchrun", "world_size": 8, "code": {"version": "0.1.0"},
     "packages": {"torch": "2.13.0"}, "python": "3.11.2", "time": "2026-01-31T12:00:00+00:00"}
    {"event": "hosts", "id": "5c0e9f12", "hosts": ["n1", "n2"], …}
    {"event": "leave", "id": "5c0e9f12", "reason": "stopped by SIGTERM", "status": 75, …}
"""

import os
import secrets
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from .checkpoints import newest_state
from .folder import RunFolder
from .metrics import SavedMetrics
from .reading import Record
from .starts import append_record, read_lines

LOST = "killed or lost"
_ENVIRONMENT = "MINIMOE_LAUNCH"  # folder and id of this process's start, while it lasts
_TAIL_BYTES = 1 << 20


class LaunchEvent(Record):
    """A line of ``starts.jsonl`` about a start by any launcher.

    Attributes:
        event: what happened.
        id: of the start.
        command: words of the command line; of a launch.
        host: of rank 0; of a launch.
        hosts: of all ranks, each once.
        launcher: who started the processes; of a launch.
        world_size: number of ranks; of a launch.
        job: number of the Slurm job, if any; of a launch.
        code, packages, python: versions; of a launch.
        reason: why it ended.
        status: exit status; None where nobody saw it.
        step: last one that is known at the end.
        time: ISO 8601, UTC.
    """

    event: Literal["launch", "hosts", "leave"]
    id: str
    command: list[str] = Field(default_factory=list)
    host: str = ""
    hosts: list[str] = Field(default_factory=list)
    launcher: str = ""
    world_size: int = 1
    job: str | None = None
    code: dict[str, Any] = Field(default_factory=dict)
    packages: dict[str, str | None] = Field(default_factory=dict)
    python: str = ""
    reason: str = ""
    status: int | None = None
    step: int | None = None
    time: str = ""


@dataclass(frozen=True)
class Start:
    """A start and, where they are known, its hosts and its end."""

    launch: LaunchEvent
    hosts: Sequence[str]
    leave: LaunchEvent | None

    @property
    def seconds(self) -> float:
        """From its beginning to its end by rank 0's clock; 0 where either is not known."""
        if self.leave is None:
            return 0.0
        try:
            times = [datetime.fromisoformat(event.time) for event in (self.launch, self.leave)]
            return max(0.0, (times[1] - times[0]).total_seconds())
        except (ValueError, TypeError):
            return 0.0

    def describe(self) -> str:
        """Describes it in a line: when, where, and how it ended."""
        end = "no end yet"
        if self.leave is not None:
            end = self.leave.reason
            if self.leave.step is not None:
                end += f" at step {self.leave.step}"
        ranks = f"{self.launch.world_size} rank{'s' * (self.launch.world_size > 1)}"
        return f"{self.launch.time} {ranks} on {','.join(self.hosts)}: {end}"


def read_starts(folder: Path) -> list[Start]:
    """Reads all starts of a run, oldest first; none where there is no file."""
    events = read_lines(folder, LaunchEvent)
    hosts = {event.id: event.hosts for event in events if event.event == "hosts"}
    leaves = {event.id: event for event in events if event.event == "leave"}
    return [
        Start(event, hosts.get(event.id) or [event.host], leaves.get(event.id))
        for event in events
        if event.event == "launch"
    ]


def begin(folder: Path, **facts: Any) -> None:
    """Notes that this process starts a run, and that former starts without an end were lost.

    Args:
        folder: of the run; made where it is missing.
        facts: fields of the launch's :class:`LaunchEvent`.

    Raises:
        OSError: nothing can be written there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for start in read_starts(folder):
        if start.leave is None:
            _add(folder, start.launch.id, "leave", reason=LOST, step=_last_step(folder))
    number = secrets.token_hex(4)
    _add(folder, number, "launch", **facts)
    os.environ[_ENVIRONMENT] = f"{number} {folder.absolute()}"


def note_hosts(hosts: Sequence[str]) -> None:
    """Notes the hosts of this process's start; nothing where it noted none."""
    number, folder = _own()
    if folder is not None:
        with suppress(OSError):
            _add(folder, number, "hosts", hosts=list(dict.fromkeys(hosts)))


def leave(reason: str, status: int) -> None:
    """Notes the end of this process's start; nothing where it noted no start, or an end already."""
    number, folder = _own()
    os.environ.pop(_ENVIRONMENT, None)
    if folder is not None:
        line = " ".join(reason.split())
        with suppress(OSError):
            _add(folder, number, "leave", reason=line, status=status, step=_last_step(folder))


def _own() -> tuple[str, Path | None]:
    number, _, folder = os.environ.get(_ENVIRONMENT, "").partition(" ")
    return number, Path(folder) if folder else None


def _add(folder: Path, number: str, event: str, **fields: Any) -> None:
    values = LaunchEvent.model_validate({"event": event, "id": number, **fields}).as_json()
    append_record(RunFolder(folder).starts, values)


def _last_step(folder: Path) -> int | None:
    """Returns the last step in metrics or checkpoints; None for a chain's folder, or none yet."""
    trained = SavedMetrics.find(RunFolder(folder).metrics, _TAIL_BYTES).trained
    saved = newest_state(folder)
    steps = [*(record.step for record in trained[-1:]), *([saved.step] if saved else [])]
    return max(steps, default=None)

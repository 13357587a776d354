"""A run's starts and ends, written into its folder, and whether it makes progress.

``<output_dir>/starts.jsonl`` has one JSON object a line, appended by the job on its first node:

    {"event": "start", "run_id": "minimoe-3f9c02", "job": "4711", "restart": 1, "nodes": "n[1-2]",
     "progress": {".": 12000}, "code": {"version": "0.1.0"}, "time": "2026-01-31T12:00:00+00:00"}
    {"event": "end", "job": "4711", "restart": 1, "status": 75, "progress": {".": 15000}, …}
    {"event": "stop", "job": "4711", "restart": 3, "reason": "three restarts …", …}
"""

import json
import os
import re
import secrets
import struct
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

MOST_RESTARTS_WITHOUT_PROGRESS = 3
# Of a run or stage, of a fine-tuning run, of one cell of its grid.
_SUMMARIES = ("summary.json", "results.json", "result.json")
FINISHED = -1  # in place of a step: whatever is there is exported

_MOST_SHOWN = 6
Record = Mapping[str, Any]


def starts_file(folder: Path) -> Path:
    """Where the starts of the run in `folder` are written."""
    return folder / "starts.jsonl"


def read_records(folder: Path) -> list[dict[str, Any]]:
    """All whole records of a run, oldest first; none where there is no file."""
    try:
        lines = starts_file(folder).read_text("utf-8").splitlines()
    except FileNotFoundError:
        return []
    records = []
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:  # cut off by a lost node
            continue
        if isinstance(record, dict):
            records.append(record)
    return records


def add_record(folder: Path, record: Record) -> None:
    """Appends one record with the time, and puts it on disk."""
    line = json.dumps({**record, "time": datetime.now(UTC).isoformat(timespec="seconds")})
    path = starts_file(folder)
    with path.open("a+b") as file:
        # A line that a lost node cut off must not swallow this one.
        whole = file.tell() == 0 or path.read_bytes().endswith(b"\n")
        file.write((b"" if whole else b"\n") + line.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def run_id(folder: Path, records: Sequence[Record]) -> str:
    """The name under which all starts of a run go: the folder's, with a mark of its first start."""
    known = [record["run_id"] for record in records if "run_id" in record]
    return known[-1] if known else f"{folder.resolve().name}-{secrets.token_hex(3)}"


def progress_of(folder: Path) -> dict[str, int]:
    """How far a run is: the newest saved step of its folder, and of each stage or cell below it.

    Returns:
        Step, or FINISHED, by the folder's path below `folder`; "." is `folder` itself.
    """
    below = sorted(
        path
        for pattern in ("*", "cells/*", "*/cells/*")
        for path in folder.glob(pattern)
        if path.is_dir()
    )
    found = {one.relative_to(folder).as_posix(): _saved_step(one) for one in (folder, *below)}
    return {name: step for name, step in found.items() if step is not None}


def _saved_step(folder: Path) -> int | None:
    """The newest saved step of one run, FINISHED after its summary, None where nothing is."""
    state = folder / "importances.safetensors"
    checkpoints = checkpoints_of(folder)
    measured = sparsification_progress(state) or {}
    step: int | None = max(checkpoints) if checkpoints else measured.get("step")
    summaries = [folder / name for name in _SUMMARIES if (folder / name).is_file()]
    if not summaries:
        return step
    saved = checkpoints[step] if checkpoints and step is not None else state
    # An older summary is that of a run which this one replaces.
    is_older = saved.exists() and summaries[0].stat().st_mtime < saved.stat().st_mtime
    return step if is_older else FINISHED


def checkpoints_of(folder: Path) -> dict[int, Path]:
    """The finished training checkpoints of a run by step, the newest last."""
    found = {
        int(path.name[5:]): path
        for path in sorted(folder.glob("checkpoints/step_*"))
        if re.fullmatch(r"step_\d+", path.name) and (path / "manifest.json").is_file()
    }
    return dict(sorted(found.items()))


def sparsification_progress(path: Path) -> dict[str, Any] | None:
    """What a sparsification's saved state says of itself; read without safetensors' libraries."""
    try:
        with path.open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            begin, end = json.loads(file.read(size))["progress"]["data_offsets"]
            file.seek(8 + size + begin)
            progress: dict[str, Any] = json.loads(file.read(end - begin))
    except (OSError, ValueError, KeyError, TypeError, struct.error):
        return None
    return progress


def restarts_without_progress(records: Sequence[Record], job: str, progress: Record) -> int:
    """How many restarts of a job, the last ones in a row, began where the run is now.

    Args:
        records: of the run.
        job: its number; other jobs' starts do not count.
        progress: of the run now, from `progress_of`.
    """
    count = 0
    for record in reversed(records):
        if record.get("event") != "start" or record.get("job") != job:
            continue
        if not record.get("restart") or record.get("progress") != progress:
            break
        count += 1
    return count


def shown(progress: Record) -> str:
    """Progress as a few words: "step 120", or each stage's."""
    words = {
        name: "finished" if step == FINISHED else f"step {step}" for name, step in progress.items()
    }
    if not words:
        return "step 0"
    if len(words) > _MOST_SHOWN:
        done = sum(1 for step in progress.values() if step == FINISHED)
        return f"{done} of {len(words)} cells finished"
    return ", ".join(word if name == "." else f"{name} {word}" for name, word in words.items())

"""How far a run is, read from its own files: starts, metrics, checkpoints, summary, submission."""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..exit_status import ExitStatus
from . import starts
from .queue import Job, find_job
from .submissions import last_submission

_TAIL_BYTES = 1 << 20
_SIGNS = ("metrics.jsonl", "checkpoints", "submissions", "starts.jsonl", "importances.safetensors")


def runs_below(folder: Path) -> list[Path]:
    """The runs in a folder: those of its stages, or itself."""
    below = sorted(path for path in folder.glob("*") if path.is_dir() and _is_run(path))
    return below or ([folder] if _is_run(folder) else [])


def _is_run(folder: Path) -> bool:
    return any((folder / sign).exists() for sign in _SIGNS)


def report(folder: Path) -> dict[str, Any]:
    """What is known of one run; None where something is not.

    Returns:
        folder, run_id, state, detail, step, total_steps, steps_per_second, sequences_per_second,
        seconds_left, losses, restarts, checkpoint (step, path, age in seconds), job, log.
    """
    records = starts.read_records(folder) or starts.read_records(folder.parent)
    submission = last_submission(folder) or last_submission(folder.parent) or {}
    started = [record for record in records if record.get("event") == "start"]
    number = newest_job(folder)
    job = find_job(number) if number else None
    state, detail = _state(folder, records, job)
    saved = _newest_checkpoint(folder)
    facts = _plan(started, folder) | (saved.pop("facts", {}) if saved else {})
    trained = _last_records(folder / "metrics.jsonl")
    summary = _read_json(folder / "summary.json")
    total = facts.get("total_steps") or summary.get("steps")
    step = max(trained.get("step", 0), saved["step"] if saved else 0)
    rate = _steps_per_second(trained, facts)
    return {
        "folder": str(folder),
        "run_id": started[-1]["run_id"] if started else None,
        "state": state,
        "detail": detail,
        "step": step,
        "total_steps": total,
        "steps_per_second": rate,
        "sequences_per_second": trained.get("sequences_per_second"),
        "seconds_left": round((total - step) / rate) if total and rate else None,
        "losses": trained.get("losses", {}),
        "restarts": sum(1 for one in started if one["job"] == number and one["restart"]),
        "checkpoint": saved,
        "job": None if job is None else vars(job),
        "log": (submission.get("log") if submission.get("job") == number else None),
    }


def newest_job(folder: Path) -> str | None:
    """The job of a run's last start or of its last submission, whichever came later."""
    submission = last_submission(folder) or last_submission(folder.parent)
    records = starts.read_records(folder) or starts.read_records(folder.parent)
    started = [record for record in records if record.get("event") == "start"]
    if submission and (not started or submission["time"] > started[-1]["time"]):
        return str(submission["job"])
    return str(started[-1]["job"]) if started else None


def _state(folder: Path, records: list[dict[str, Any]], job: Job | None) -> tuple[str, str]:
    """A word for the state, and what more there is to say."""
    if job is not None and job.is_alive:
        words = {"PENDING": "waiting", "RUNNING": "running", "COMPLETING": "ending"}
        return words.get(job.state, job.state.lower()), job.reason
    if starts.progress_of(folder).get(".") == starts.FINISHED:
        return "finished", ""
    if _is_locked(folder):
        return "running", "outside Slurm"
    last = records[-1] if records else {}
    if last.get("event") == "stop":
        return "stopped", f"{last['reason']}: look at the log, then submit again"
    if job is not None and job.state not in ("COMPLETED", "FAILED"):
        return job.state.lower(), "submit again to go on"
    if last.get("event") == "end" and last["status"] == ExitStatus.STOPPED:
        return "saved", "submit again to go on"
    if last.get("event") == "end":
        return "failed", f"status {last['status']}: look at the log, then submit again"
    if job is not None and job.state == "FAILED":
        return "failed", "look at the log, then submit again"
    if last.get("event") == "start":
        return "lost", "ended without a word; submit again to go on"
    return "not running", ""


def _is_locked(folder: Path) -> bool:
    """Whether a run on this machine holds the folder.

    The kernel's list tells it: taking the lock to see would refuse a run that starts just then.
    """
    path = folder / "run.lock"
    try:
        ending = f":{path.stat().st_ino}"
        held = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    except OSError:
        return False
    return any("FLOCK" in fields and any(one.endswith(ending) for one in fields) for fields in held)


def _newest_checkpoint(folder: Path) -> dict[str, Any] | None:
    """Step, path, age and facts of the newest checkpoint."""
    found = starts.checkpoints_of(folder)
    if found:
        step, path = list(found.items())[-1]
        facts = _read_json(path / "run.json").get("facts", {})
        changed = (path / "manifest.json").stat().st_mtime
    else:
        path = folder / "importances.safetensors"
        state = starts.sparsification_progress(path)
        if state is None:
            return None
        step, facts, changed = state["step"], state.get("facts", {}), path.stat().st_mtime
    return {"step": step, "path": str(path), "age": round(time.time() - changed), "facts": facts}


def _last_records(path: Path) -> dict[str, Any]:
    """The last training line and the losses of the last evaluation, from the end of the file."""
    found: dict[str, Any] = {"losses": {}}
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
            lines = file.read().splitlines()
    except OSError:
        return found
    for line in lines:
        try:
            record = json.loads(line)
        except ValueError:  # cut off, at either end
            continue
        if "heldout_loss" in record:
            found["losses"] |= {f"{k} held-out": v for k, v in record["heldout_loss"].items()}
        elif "students" in record:
            losses = {name: one.get("loss") for name, one in record["students"].items()}
            found = {**found, **record, "losses": {**found["losses"], **losses}}
    return found


def _steps_per_second(trained: Mapping[str, Any], facts: Mapping[str, Any]) -> float | None:
    sequences, batch = trained.get("sequences_per_second"), facts.get("global_batch_size")
    return sequences / batch if sequences and batch else None


def _plan(started: list[dict[str, Any]], folder: Path) -> dict[str, Any]:
    """What the last start said of the run in `folder`, or of that stage."""
    plans = started[-1].get("plans", {}) if started else {}
    plan: dict[str, Any] = plans.get(".") or plans.get(folder.name) or {}
    return plan


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}

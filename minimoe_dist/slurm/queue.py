"""Asks Slurm about a job: squeue and scontrol while it is in the queue, sacct afterwards."""

import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

_ANSWER_SECONDS = 30
ALIVE = ("PENDING", "CONFIGURING", "RUNNING", "SUSPENDED", "COMPLETING", "STOPPED", "REQUEUED")
_SQUEUE = "%i|%T|%r|%N|%L|%S"
_SACCT = "JobID,State,Reason,NodeList"


class SlurmError(RuntimeError):
    """Says in one line that one of Slurm's commands is missing, silent, or refuses."""


@dataclass(frozen=True)
class Job:
    """A job as Slurm shows it.

    Attributes:
        number: the job's number.
        state: Slurm's word, such as PENDING or RUNNING.
        reason: why it waits, or ended; empty where there is none.
        nodes: a node list; empty while it waits.
        time_left: time until its limit, as squeue writes it.
        start: time when it started or may start, as squeue writes it.
    """

    number: str
    state: str
    reason: str = ""
    nodes: str = ""
    time_left: str = ""
    start: str = ""

    @property
    def is_alive(self) -> bool:
        """Whether it runs, waits, or will wait again."""
        return self.state in ALIVE


def execute(command: Sequence[str]) -> str:
    """Runs one of Slurm's commands and returns what it prints.

    Raises:
        SlurmError: the command is missing, does not answer, or refuses.
    """
    try:
        process = subprocess.run(command, capture_output=True, text=True, timeout=_ANSWER_SECONDS)
    except FileNotFoundError:
        raise SlurmError(f"{command[0]}: not found; log in to a node that has Slurm") from None
    except subprocess.TimeoutExpired:
        raise SlurmError(f"{command[0]}: no answer within {_ANSWER_SECONDS} s") from None
    if process.returncode != 0:
        message = " ".join(process.stderr.split()) or f"exit status {process.returncode}"
        raise SlurmError(f"{command[0]}: {message}")
    return process.stdout


def find_job(number: str) -> Job | None:
    """Finds a job of the queue or of the past; None where Slurm is missing or does not know it."""
    for command, parse in (
        (["squeue", "--noheader", "--states=all", f"--jobs={number}", f"--format={_SQUEUE}"],
         parse_squeue),
        (["sacct", "--noheader", "--parsable2", "--allocations", f"--jobs={number}",
          f"--format={_SACCT}"], parse_sacct),
    ):  # fmt: skip
        try:
            job = parse(execute(command))
        except SlurmError:
            continue
        if job is not None:
            return job
    return None


def parse_squeue(text: str) -> Job | None:
    """Parses the last line ``NUMBER|STATE|REASON|NODES|TIME_LEFT|START``; None if there is none."""
    lines = [line for line in text.splitlines() if line.count("|") == _SQUEUE.count("|")]
    return Job(*(_empty_if_none(field) for field in lines[-1].split("|"))) if lines else None


def parse_sacct(text: str) -> Job | None:
    """Parses the last line ``NUMBER|STATE|REASON|NODES``, which is of the last restart."""
    lines = [line for line in text.splitlines() if line.count("|") == _SACCT.count(",")]
    if not lines:
        return None
    number, state, reason, nodes = map(_empty_if_none, lines[-1].split("|"))
    return Job(number, state.split()[0] if state else "", reason, nodes)  # "CANCELLED by 0"


def parse_record(text: str) -> dict[str, str]:
    """Parses the fields of ``scontrol --oneliner show …`` by name."""
    # The first of a name counts: a job's own arguments, shown too, may look like fields.
    return dict(reversed(re.findall(r"(?:^|\s)(\w+)=(\S*)", text)))


def show_job(number: str) -> dict[str, str]:
    """Returns the fields that scontrol shows of a job in the queue.

    Raises:
        SlurmError: the job is not in the queue, or Slurm does not answer.
    """
    return parse_record(execute(["scontrol", "--oneliner", "show", "job", number]))


def _empty_if_none(field: str) -> str:
    return "" if field in ("None", "N/A", "(null)", "None assigned", "INVALID") else field

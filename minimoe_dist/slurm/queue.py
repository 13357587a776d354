"""What Slurm knows of a job: squeue and scontrol while it is in the queue, sacct afterwards."""

import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

_ANSWER_SECONDS = 30
ALIVE = ("PENDING", "CONFIGURING", "RUNNING", "SUSPENDED", "COMPLETING", "STOPPED", "REQUEUED")
_SQUEUE = "%i|%T|%r|%N|%L|%S"
_SACCT = "JobID,State,Reason,NodeList"


class SlurmError(RuntimeError):
    """One of Slurm's commands is missing, silent, or refuses; one line with its words."""


@dataclass(frozen=True)
class Job:
    """A job as Slurm shows it.

    Attributes:
        number: of the job.
        state: Slurm's word, such as PENDING or RUNNING.
        reason: why it waits, or ended; empty where there is none.
        nodes: a node list; empty while it waits.
        time_left: until its limit, as squeue writes it.
        start: when it started or may start, as squeue writes it.
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
        SlurmError: it is not there, does not answer, or refuses.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_ANSWER_SECONDS)
    except FileNotFoundError:
        raise SlurmError(f"{command[0]}: not found; log in to a node that has Slurm") from None
    except subprocess.TimeoutExpired:
        raise SlurmError(f"{command[0]}: no answer within {_ANSWER_SECONDS} s") from None
    if done.returncode != 0:
        words = " ".join(done.stderr.split()) or f"exit status {done.returncode}"
        raise SlurmError(f"{command[0]}: {words}")
    return done.stdout


def find_job(number: str) -> Job | None:
    """A job of the queue or of the past; None where Slurm is missing or knows nothing of it."""
    for command, parse in (
        (["squeue", "--noheader", "--states=all", f"--jobs={number}", f"--format={_SQUEUE}"],
         parse_squeue),
        (["sacct", "--noheader", "--parsable2", "--allocations", f"--jobs={number}",
          f"--format={_SACCT}"], parse_sacct),
    ):  # fmt: skip
        try:
            found = parse(execute(command))
        except SlurmError:
            continue
        if found is not None:
            return found
    return None


def parse_squeue(text: str) -> Job | None:
    """The job of a line ``NUMBER|STATE|REASON|NODES|TIME_LEFT|START``; None of an empty text."""
    lines = [line for line in text.splitlines() if line.count("|") == _SQUEUE.count("|")]
    return Job(*(_known(field) for field in lines[-1].split("|"))) if lines else None


def parse_sacct(text: str) -> Job | None:
    """The job of the last line ``NUMBER|STATE|REASON|NODES``, which tells the last restart."""
    lines = [line for line in text.splitlines() if line.count("|") == _SACCT.count(",")]
    if not lines:
        return None
    number, state, reason, nodes = map(_known, lines[-1].split("|"))
    return Job(number, state.split()[0] if state else "", reason, nodes)  # "CANCELLED by 0"


def parse_record(text: str) -> dict[str, str]:
    """The fields of ``scontrol --oneliner show …`` by name."""
    # The first of a name counts: a job's own arguments, shown too, may look like fields.
    return dict(reversed(re.findall(r"(?:^|\s)(\w+)=(\S*)", text)))


def show_job(number: str) -> dict[str, str]:
    """What scontrol says of a job that is in the queue.

    Raises:
        SlurmError: it is not, or Slurm does not answer.
    """
    return parse_record(execute(["scontrol", "--oneliner", "show", "job", number]))


def _known(field: str) -> str:
    return "" if field in ("None", "N/A", "(null)", "None assigned", "INVALID") else field

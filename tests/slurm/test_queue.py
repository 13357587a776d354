"""What Slurm's commands print, read."""

import pytest

from minimoe_dist.slurm.queue import (
    Job,
    SlurmError,
    execute,
    parse_record,
    parse_sacct,
    parse_squeue,
)


def test_squeue_line_of_a_running_job() -> None:
    line = "4711|RUNNING|None|n[1-2]|23:59:10|2026-01-31T12:00:00\n"
    job = parse_squeue(line)
    assert job == Job("4711", "RUNNING", "", "n[1-2]", "23:59:10", "2026-01-31T12:00:00")
    assert job.is_alive


def test_squeue_line_of_a_waiting_job() -> None:
    job = parse_squeue("4711|PENDING|BeginTime||1-00:00:00|N/A\n")
    assert job == Job("4711", "PENDING", "BeginTime", "", "1-00:00:00", "")


def test_a_job_that_is_over_is_not_alive() -> None:
    job = parse_squeue("4711|TIMEOUT|TimeLimit|n1|0:00|2026-01-31T12:00:00")
    assert job is not None and not job.is_alive


def test_nothing_is_no_job() -> None:
    assert parse_squeue("") is None and parse_sacct("\n") is None


def test_sacct_tells_the_last_of_several_starts() -> None:
    job = parse_sacct("4711|REQUEUED|None|n1\n4711|CANCELLED by 0|None|n2\n")
    assert job == Job("4711", "CANCELLED", "", "n2")


def test_arguments_of_a_job_do_not_hide_its_fields() -> None:
    record = parse_record("JobId=1 JobState=RUNNING Reason=None Command=/x JobState=NO a=b")
    assert (record["JobState"], record["a"]) == ("RUNNING", "b")


def test_a_missing_command_is_told_by_its_name() -> None:
    with pytest.raises(SlurmError, match="no-such-squeue: not found"):
        execute(["no-such-squeue"])


def test_a_refusal_has_the_commands_words() -> None:
    with pytest.raises(SlurmError, match=r"^sh: no such job$"):
        execute(["sh", "-c", "echo no such job >&2; exit 1"])

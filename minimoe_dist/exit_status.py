"""The exit statuses of this program."""

from enum import IntEnum


class ExitStatus(IntEnum):
    """Tells people, job scripts and launchers how a process ended.

    A Slurm job is requeued after all of them but `DONE` and `REFUSED`.
    """

    DONE = 0
    FAILED = 1  # no rendezvous, a lost rank, a loss that stayed not finite; sick nodes (doctor)
    REFUSED = 2  # what the user gave is wrong, or has an end asked for; one line says what
    BROKEN = 70  # EX_SOFTWARE: a fault of this program, with its traceback
    IO_ERROR = 74  # EX_IOERR: a disk or a network failed, which may pass
    STOPPED = 75  # EX_TEMPFAIL: the same command, started again, goes on where this one saved
    INTERRUPTED = 130
    PIPE_CLOSED = 141  # nobody reads what is printed

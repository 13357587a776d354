"""Progress is shown where somebody looks, and never ends what it shows."""

import contextlib
import io
import os
import pty
import termios

from minimoe_dist.train.progress import Progress


def use(progress: Progress) -> None:
    with progress:
        progress.phase("compiling")
        progress.phase(None)
        for step in range(1, 4):
            progress.advance({"loss": 1.0})
            progress.print_step(step, {"loss": 1.0})


def test_a_log_gets_lines() -> None:
    stream = io.StringIO()
    use(Progress(stream, 3, 0))
    assert stream.getvalue().splitlines() == [
        "compiling",
        *(f"step {step}/3  loss 1" for step in range(1, 4)),
    ]


def test_a_log_on_a_full_disk_ends_nothing() -> None:
    is_done = False
    # Closing it fails: what stands in it cannot be written.
    with contextlib.suppress(OSError), open("/dev/full", "w", buffering=1) as stream:
        use(Progress(stream, 3, 0))
        is_done = True
    assert is_done


def test_a_terminal_that_is_closed_ends_nothing() -> None:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    is_done = False
    with contextlib.suppress(OSError), open(theirs, "w", buffering=1) as stream:
        progress = Progress(stream, 3, 0)
        assert b"distilling" in os.read(ours, 1000)  # a bar
        os.close(ours)
        use(progress)
        is_done = True
    assert is_done

"""Files that a run's observers append to; one that cannot be written never ends the run."""

import math
import os
import socket
import time
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

from ..runtime import logger

_EVENT_FILES = "events.out.tfevents."
_log = logger("train.journal")


class Journal:
    """A file that records are appended to, each whole or not at all.

    A record that cannot be written, on a full disk say, is left out: the first one in a row is
    told, and the next one is tried again.

    Args:
        path: the file; its folder is made.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fails = False

    def append(self, record: bytes) -> bool:
        """Appends a record; returns whether it was written."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # Opened anew each time: a network's file system that was away is there again.
            with self._path.open("ab", buffering=0) as file:
                _write_whole(file.fileno(), record)
        except OSError as error:
            if not self._fails:
                reason = error.strerror or error
                _log.warning("%s: not written (%s); the run goes on", self._path, reason)
            self._fails = True
            return False
        if self._fails:
            _log.warning("%s: written again; what came between is missing there", self._path)
        self._fails = False
        return True


def _write_whole(descriptor: int, record: bytes) -> None:
    end = os.lseek(descriptor, 0, os.SEEK_END)
    try:
        written = 0
        while written < len(record):
            written += os.write(descriptor, record[written:])
    except OSError:
        os.ftruncate(descriptor, end)
        raise


class EventFile:
    """Writes scalars for TensorBoard, which drops what an earlier file has from the same step on.

    Args:
        folder: of the run's event files.
        first_step: the step of the first scalar.
    """

    def __init__(self, folder: Path, first_step: int) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog

        self._journal = Journal(folder / _event_file_name(folder))
        start = SessionLog(status=SessionLog.START)
        self._unwritten = _framed(Event(wall_time=time.time(), file_version="brain.Event:2"))
        self._unwritten += _framed(Event(wall_time=time.time(), step=first_step, session_log=start))

    def add(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes scalars of a step by tag, those that are finite."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = [
            Summary.Value(tag=tag, simple_value=value)
            for tag, value in scalars.items()
            if math.isfinite(value)
        ]
        record = _framed(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))
        if self._journal.append(self._unwritten + record):
            self._unwritten = b""


def _event_file_name(folder: Path) -> str:
    """Returns a name behind all others: TensorBoard reads in the order of names, not of clocks."""
    stamps = [path.name.removeprefix(_EVENT_FILES) for path in folder.glob(f"{_EVENT_FILES}*")]
    newest = max((int(stamp[:10]) for stamp in stamps if stamp[:10].isdigit()), default=0)
    stamp = max(int(time.time()), newest + 1)
    return f"{_EVENT_FILES}{stamp:010d}.{socket.gethostname()}.{os.getpid()}"


def _framed(event: object) -> bytes:
    """Returns an event as a record of the file, with its length and checksums."""
    from tensorboard.summary.writer.record_writer import RecordWriter

    buffer = BytesIO()
    RecordWriter(buffer).write(event.SerializeToString())  # type: ignore[attr-defined]
    return buffer.getvalue()

"""Records what a build was asked for and how far it came, so that a killed one goes on.

Beside a corpus in the making lie `<prefix>.job.partial`, locked, which says what it is made from,
and `<prefix>.progress.partial`, replaced at each checkpoint. Both leave when the corpus is whole.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from ..data.growing import close_quietly, open_locked
from ..data.indexed_writing import WriterState
from ..durable import PARTIAL, remove, write_json
from ..errors import UserError
from .portions import Position


@dataclass(frozen=True)
class Job:
    """Identifies all that decides the bytes of a corpus.

    Attributes:
        options: by name; JSON values.
        inputs: name, size in bytes and time of the last change (ns) of each input.
        part: (i, n) of a share; None for everything.
    """

    options: Mapping[str, Any]
    inputs: list[tuple[str, int, int]]
    part: tuple[int, int] | None = None

    def fingerprint(self) -> str:
        """Returns the hexadecimal SHA-256 of everything but times and the share."""
        inputs = [(name, size) for name, size, _ in self.inputs]
        text = json.dumps([self.options, inputs], sort_keys=True)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

    def to_json(self) -> str:
        """Returns the job as JSON text."""
        return json.dumps(asdict(self))

    def difference(self, earlier: Mapping[str, Any]) -> str | None:
        """Names what first differs from a job that was read back from JSON, None if nothing."""
        current = json.loads(self.to_json())
        if current == earlier:
            return None
        for name, value in current["options"].items():
            if earlier["options"].get(name) != value:
                return f"{name} was {earlier['options'].get(name)!r}, now it is {value!r}"
        earlier_inputs = {name: (size, time) for name, size, time in earlier["inputs"]}
        for name, size, time in current["inputs"]:
            if name not in earlier_inputs:
                return f"the input {name} is new"
            if earlier_inputs[name] != (size, time):
                return f"the input {name} was changed"
        gone = sorted(set(earlier_inputs) - {name for name, _, _ in current["inputs"]})
        return f"the input {gone[0]} is gone" if gone else "the share (--shard) is another one"


@dataclass
class Progress:
    """A checkpoint of a build.

    Attributes:
        position: where reading goes on.
        num_bytes: of the inputs, done so far.
        counts: what was left out or repaired so far.
        characters: of the text so far, those kept and those left out by kind.
        unknown_tokens: so far.
        hashes: SHA-256 of inputs, by path, as far as they are known.
        open_side: the writer that has the document that may go on.
        writers: the states of the training and the held-out writer.
    """

    position: Position = field(default_factory=Position)
    num_bytes: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    characters: dict[str, int] = field(default_factory=dict)
    unknown_tokens: int = 0
    hashes: dict[str, str] = field(default_factory=dict)
    open_side: int = 0
    writers: list[WriterState] = field(default_factory=list)

    @classmethod
    def from_json(cls, text: str) -> Progress:
        """Reads back what `Journal.save` wrote."""
        values = json.loads(text)
        values["position"] = Position(**values["position"])
        values["writers"] = [WriterState(**state) for state in values["writers"]]
        return cls(**values)


class Journal:
    """The two files beside a corpus in the making, held by one process at a time.

    Args:
        prefix: of the corpus; its folder exists.
        job: what it is made from.
        start_anew: whether a job that differs from the one begun here replaces it.

    Attributes:
        progress: the last checkpoint of the same job; None if there is none.
        is_resumed: whether the same job was begun here before.

    Raises:
        UserError: another process writes the corpus, or another job was begun here.
    """

    def __init__(self, prefix: str, job: Job, start_anew: bool) -> None:
        self._progress_path = prefix + ".progress" + PARTIAL
        self._stream = open_locked(prefix + ".job" + PARTIAL, keep=True)
        self.progress: Progress | None = None
        earlier = self._read_job()
        difference = None if earlier is None else job.difference(earlier)
        if difference is not None and not start_anew:
            self.close()
            raise UserError(
                f"{prefix}: a build was begun there with other inputs or options ({difference}); "
                f"give the same ones to go on, or --overwrite to begin anew"
            )
        self.is_resumed = earlier is not None and difference is None
        if self.is_resumed:
            self.progress = self._read_progress()
        else:
            remove(self._progress_path)
            self._stream.seek(0)
            self._stream.truncate()
            self._stream.write(job.to_json().encode("utf-8", "surrogatepass"))
            self._stream.flush()

    def _read_job(self) -> dict[str, Any] | None:
        try:
            job: dict[str, Any] = json.loads(self._stream.read().decode("utf-8", "surrogatepass"))
        except ValueError:
            # Nothing there, or killed while it was written: nothing has been done yet.
            return None
        return job

    def _read_progress(self) -> Progress | None:
        try:
            with open(self._progress_path, encoding="utf-8") as stream:
                return Progress.from_json(stream.read())
        except FileNotFoundError:
            return None

    def save(self, progress: Progress) -> None:
        """Puts a checkpoint on disk; what it speaks of must be there already."""
        write_json(self._progress_path, asdict(progress))

    def remove(self) -> None:
        """Ends the journal: the corpus is whole, or nothing of it is left."""
        remove(self._progress_path)
        remove(self._progress_path + PARTIAL)
        remove(self._stream.name)
        self.close()

    def close(self) -> None:
        """Lets go of the files and leaves them."""
        close_quietly(self._stream)

"""The lines of ``metrics.jsonl``: a JSON object each, written while a run trains.

A training line, written every `log_interval` steps and at the last one, averages the steps since
the line before it (the learning rate is the last one's, `tokens_per_expert` sums, block by block):

    {"step": 200, "steps": 100, "learning_rate": 3e-4, "sequences_per_second": 812.3,
     "tokens_per_second": 80112.5, "tflops": 1.9, "students": {"student": {"loss": 1.2,
     "relation_loss": 1.1, "balance": 1.0, "gradient_norm": 0.8, "skipped_steps": 0,
     "tokens_per_expert": [[10, 12, 9, 14]]}}}

The parts between loss and balance are those of the run's objective: `relation_loss`,
`last_states_loss`, `mlm_loss`, or TinyBERT's `states_loss` and `scores_loss`. An evaluation line is
{"step": 200, "heldout_loss": {"student": 1.0}}. Lines that say what is wrong are :mod:`.health`'s.
What is no finite number is null. A killed run may leave a line that is cut off, and a damaged disk
any bytes.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import ConfigDict, Field

from ..durable import beside, flush_stream, written
from ..errors import UserError
from .health import HealthRecord
from .reading import Record, open_file, parse_object, read_bytes

DAMAGED = ".damaged"


class StudentRecord(Record):
    """A student's numbers in a training line, means over its steps; None where not finite.

    An objective may have other parts than these.
    """

    model_config = ConfigDict(extra="allow")

    loss: float | None = None
    relation_loss: float | None = None
    last_states_loss: float | None = None
    mlm_loss: float | None = None
    balance: float | None = None
    gradient_norm: float | None = None
    skipped_steps: int = 0
    tokens_per_expert: list[list[int]] = Field(default_factory=list)

    @property
    def learns_relations_alone(self) -> bool:
        """Whether the loss's one part is that of relations."""
        others = {"last_states_loss", "mlm_loss"}
        return "relation_loss" in self.model_fields_set and not self.model_fields_set & others

    def loss_of(self, part: str) -> float | None:
        """Returns the mean relation loss if that is the part, else the mean of the whole loss."""
        return self.relation_loss if part == "relation_loss" else self.loss


class TrainingRecord(Record):
    """A training line."""

    step: int
    steps: int = 0
    learning_rate: float | None = None
    sequences_per_second: float | None = None
    tokens_per_second: float | None = None
    tflops: float | None = None
    students: dict[str, StudentRecord]


class HeldoutRecord(Record):
    """An evaluation line: held-out losses of students and sub-models by name."""

    step: int
    heldout_loss: dict[str, float | None]


class StepRecord(Record):
    """A line of a kind that is not known, as another version may write."""

    step: int


MetricsRecord = TrainingRecord | HeldoutRecord | HealthRecord | StepRecord


@dataclass(frozen=True)
class SavedMetrics:
    """The lines of a run by kind, each in order."""

    trained: Sequence[TrainingRecord] = ()
    evaluated: Sequence[HeldoutRecord] = ()
    health: Sequence[HealthRecord] = ()

    @classmethod
    def read(cls, path: Path) -> "SavedMetrics":
        """Reads all lines of a file but a last one that is still being written.

        Raises:
            UserError: the file cannot be read, or a line is no record; names file and line.
        """
        return cls._by_kind(
            _parse(line, f"{path}:{number}")
            for number, line in enumerate(read_bytes(path).splitlines(True), start=1)
            if line.endswith(b"\n")
        )

    @classmethod
    def find(cls, path: Path, last_bytes: int = 0) -> "SavedMetrics":
        """Reads those lines of a file that can be read; none where there is no file.

        Args:
            path: the file.
            last_bytes: how much of the file's end is read; 0 reads all.
        """
        try:
            with open_file(path) as file:
                if last_bytes:
                    file.seek(max(0, path.stat().st_size - last_bytes))
                content = file.read()
        except (OSError, UserError):
            return cls()
        return cls._by_kind(record for _, record in _lines(content) if record)

    @classmethod
    def _by_kind(cls, records: Iterable[MetricsRecord]) -> "SavedMetrics":
        records = list(records)
        return cls(
            [record for record in records if isinstance(record, TrainingRecord)],
            [record for record in records if isinstance(record, HeldoutRecord)],
            [record for record in records if isinstance(record, HealthRecord)],
        )

    def __bool__(self) -> bool:
        return bool(self.trained or self.evaluated or self.health)


def drop_after(path: Path, last_step: int) -> Path | None:
    """Drops what will be done again: later steps, this step's evaluation, a line that was cut off.

    Lines that are damaged in another way are moved to ``metrics.jsonl.damaged``.

    Args:
        path: the file; it need not be there.
        last_step: that a run goes on behind.

    Returns:
        The file of damaged lines where there were any; else None.

    Raises:
        UserError: something else has the file's name.
    """
    if not path.exists():
        return None
    kept, damaged = [], []
    for line, record in _lines(read_bytes(path)):
        if record is None:
            damaged.append(line)
        elif record.step < last_step + (not isinstance(record, HeldoutRecord)):
            kept.append(line)
    aside = beside(path, DAMAGED)
    if damaged:
        with aside.open("ab") as file:
            file.writelines(damaged)
            flush_stream(file)
    with written(path) as new:
        new.write_bytes(b"".join(kept))
    return aside if damaged else None


def _lines(content: bytes) -> Iterator[tuple[bytes, MetricsRecord | None]]:
    """Yields the whole lines with their records; None in place of one that cannot be read."""
    for line in content.splitlines(keepends=True):
        if line.endswith(b"\n"):
            try:
                record: MetricsRecord | None = _parse(line, "")
            except UserError:
                record = None
            yield line, record


def _parse(line: bytes, where: str) -> MetricsRecord:
    try:
        values = parse_object(line, where)
        kind = (
            HeldoutRecord
            if "heldout_loss" in values
            else TrainingRecord
            if "students" in values
            else HealthRecord
            if "health" in values
            else StepRecord
        )
        return kind.of(values, where)
    except UserError:
        raise UserError(
            f"{where}: not a record of a run: take the line out, or run the command again"
        ) from None

"""The health lines of ``metrics.jsonl``: what was wrong in a run, from which step on, until when.

A condition is written where it is seen first, and once more where it is over:

    {"step": 400, "health": "dead_expert", "since": 201, "student": "student", "layer": 2,
     "block": "feed-forward", "expert": 3, "value": 0.0, "limit": 0.0025}
    {"step": 600, "health": "dead_expert", "is_over": true, "since": 201, "student": "student",
     "layer": 2, "block": "feed-forward", "expert": 3, "value": 0.04, "limit": 0.0025}
"""

from collections.abc import Iterable
from typing import NamedTuple

from .reading import Record

BROKEN_TEACHER, EXPLODING_GRADIENT = "broken_teacher", "exploding_gradient"
DEAD_EXPERT, OVERLOADED_EXPERT = "dead_expert", "overloaded_expert"

Place = tuple[str | int | None, ...]


class HealthRecord(Record):
    """A health line.

    Attributes:
        step: at which it was seen that the condition began, or is over.
        health: the condition, named as the option that watches for it.
        is_over: whether it ended here.
        since: the first step of the condition.
        student: whose it is; None for the teacher's.
        layer: of the expert, counted from 1.
        block: ``attention`` or ``feed-forward``.
        expert: its number in the block, counted from 1.
        teacher: its path, where it is the teacher's.
        signal: those of the teacher's signals that are meant, such as ``queries, keys``.
        value: the gradient's norm, the expert's share of the tokens, or the share of tokens for
            which the teacher's signal is finite.
        limit: what ``value`` is held against.
    """

    step: int
    health: str
    is_over: bool = False
    since: int
    student: str | None = None
    layer: int | None = None
    block: str | None = None
    expert: int | None = None
    teacher: str | None = None
    signal: str | None = None
    value: float | None = None
    limit: float | None = None

    @property
    def place(self) -> Place:
        """What tells the condition from all others that may hold at one time."""
        return (self.health, self.student, self.layer, self.block, self.expert, self.signal)

    def describe(self) -> str:
        """Returns the condition in words, with its value and limit, without steps."""
        words = _WORDS.get(self.health)
        return words(self) if words else f"{self.student or 'the run'}: {self.health}"


class Condition(NamedTuple):
    """A condition of a run.

    Attributes:
        began: the line of its beginning.
        ended: the step at which it was over; None where it was not.
    """

    began: HealthRecord
    ended: int | None

    def describe(self) -> str:
        """Returns the condition in words, with its steps."""
        began = self.began
        steps = f"since step {began.since}"
        if self.ended is not None:
            steps = f"from step {began.since}, over at step {self.ended}"
        return f"{began.describe()}, {steps}"


def conditions(records: Iterable[HealthRecord]) -> list[Condition]:
    """Joins beginnings with ends, in the order of the beginnings.

    What a resumed run finds again is one condition with what it found before.
    """
    found: dict[tuple[Place, int], Condition] = {}
    open_at: dict[Place, int] = {}
    for record in records:
        place = record.place
        if record.is_over:
            since = open_at.pop(place, None)
            if since is not None:
                found[place, since] = found[place, since]._replace(ended=record.step)
        elif place not in open_at:
            open_at[place] = record.step
            found[place, record.step] = Condition(record, None)
    return list(found.values())


def _teacher(record: HealthRecord) -> str:
    which = f"the {record.signal} of the teacher {record.teacher}"
    if record.value == 1.0:
        return f"{which} do not depend on what it reads"
    share = 100 * (1 - (record.value or 0))
    return f"{which} are not finite for {share:.3g} % of what it reads"


def _gradient(record: HealthRecord) -> str:
    is_now, limit = "is" if not record.is_over else "is back to", f"{record.limit or 0:.3g}"
    value = f"{record.value or 0:.3g}"
    return f"{record.student}: the gradient's norm {is_now} {value} (exploding above {limit})"


def _expert(record: HealthRecord) -> str:
    where = f"{record.student}: layer {record.layer} {record.block} expert {record.expert}"
    kind, side = {DEAD_EXPERT: ("dead", "below")}.get(record.health, ("overloaded", "above"))
    value, limit = 100 * (record.value or 0), 100 * (record.limit or 0)
    return f"{where} gets {value:.3g} % of the tokens ({kind} {side} {limit:.3g} %)"


_WORDS = {
    BROKEN_TEACHER: _teacher,
    EXPLODING_GRADIENT: _gradient,
    DEAD_EXPERT: _expert,
    OVERLOADED_EXPERT: _expert,
}

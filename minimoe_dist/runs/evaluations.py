"""``evaluation.json``: what a model costs, and how near it is to its teacher."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from .reading import Record, parse_object, read_text


class Machine(Record):
    """The machine that was measured on; `threads` are PyTorch's, on a CPU."""

    device: str | None = None
    name: str | None = None
    threads: int | None = None


class BatchSpeed(Record):
    """The speed at one batch size; see :class:`minimoe_dist.models.measuring.Latency`."""

    batch_size: int
    median_seconds: float
    fastest_seconds: float
    slowest_seconds: float
    sequences_per_second: float
    peak_bytes: int | None = None


class Speed(Record):
    """Latencies at one length in tokens, each the median of some passes."""

    length: int
    repeats: int
    batches: list[BatchSpeed]


class TunedScores(Record):
    """The scores of the fine-tuning that made the model: the best seed's, the mean over seeds."""

    task: str
    metric: str
    best: dict[str, float] | None = None
    mean: float | None = None
    deviation: float | None = None
    seeds: int = 0
    dev_samples: int | None = None


class TaskScores(Record):
    """Scores by metric on a split of a task; `metric` is the one that counts."""

    task: str
    metric: str
    split: str
    samples: int
    rows_left_out: int = 0
    rows_of_unknown_labels: int = 0
    scores: dict[str, float]


class Relations(Record):
    """KL to the teacher's relations in nats a row, on held-out text.

    Attributes:
        by_head: of each relation, by its name.
    """

    teacher: str
    corpora: list[str] = Field(default_factory=list)
    sequences: int
    loss: float
    by_head: dict[str, list[float]]


class ExpertLoad(Record):
    """Tokens of each expert of a block, on held-out text."""

    block: str
    tokens: list[int]


class Evaluation(Record):
    """The measurements of one model; what was not measured is None.

    Attributes:
        student: its name.
        source: as it was given.
        model: its folder.
        step: of its run after which it was saved; None of a run's end.
        description: for people.
        gmac_of_128: 10⁹ multiply-accumulates of a sequence of 128.
        mean_length: of held-out sequences, in tokens; `gmac_of_mean_length` is of that length.
    """

    kind: Literal["evaluation"]
    student: str
    source: str | None = None
    model: str | None = None
    step: int | None = None
    model_type: str | None = None
    description: str = ""
    parameters: int | None = None
    gmac_of_128: float | None = None
    machine: Machine | None = None
    fine_tuning: TunedScores | None = None
    task_scores: TaskScores | None = None
    speed: Speed | None = None
    mean_length: float | None = None
    relations: Relations | None = None
    experts: list[ExpertLoad] = Field(default_factory=list)
    gmac_of_mean_length: float | None = None


def find_evaluation(path: Path) -> Evaluation | None:
    """Reads the evaluation in a file; None where it has JSON of another kind.

    Raises:
        UserError: the file is damaged.
    """
    values = parse_object(read_text(path), str(path))
    return Evaluation.of(values, str(path)) if values.get("kind") == "evaluation" else None

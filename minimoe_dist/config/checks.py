"""Options that do not fit each other or the number of processes.

Each check returns problems as (path of the option, what is wrong with its value and the remedy).
"""

from collections import Counter
from typing import TYPE_CHECKING

from minimoe_dist.config.problems import ConfigError, Path

if TYPE_CHECKING:
    from minimoe_dist.config.schema import RunConfig

BUILT_MODEL_TYPES = ("bert_minilm", "moebert_minilm")

Problem = tuple[Path, str]


def run_problems(config: "RunConfig") -> list[Problem]:
    """What does not fit together in one run's options."""
    problems: list[Problem] = []
    if config.model_type not in BUILT_MODEL_TYPES:
        built = ", ".join(BUILT_MODEL_TYPES)
        problems.append((("model_type",), f"{config.model_type!r} is not built yet; use {built}"))
    return problems + _student_problems(config) + _parallel_problems(config)


def _student_problems(config: "RunConfig") -> list[Problem]:
    problems: list[Problem] = []
    relation_heads = config.objective.num_relation_heads
    for index, student in enumerate(config.students):
        at: Path = ("students", index)
        if student.hidden % student.heads:
            problems.append(
                (
                    (*at, "hidden"),
                    f"{student.hidden} is not divisible by heads {student.heads}; "
                    "choose a multiple or other heads",
                )
            )
        if student.hidden % relation_heads:
            problems.append(
                (
                    (*at, "hidden"),
                    f"{student.hidden} is not divisible by objective.num_relation_heads "
                    f"{relation_heads}; choose a multiple or other relation heads",
                )
            )
        if config.model_type == "bert_minilm" and student.moe != "1,1":
            remedy = "use '1,1', or model_type moebert_minilm"
            problems.append(
                ((*at, "moe"), f"{student.moe!r} has no place in bert_minilm; {remedy}")
            )
    for name, count in Counter(student.name for student in config.students).items():
        if count > 1:
            problems.append((("students",), f"{count} are named {name!r}; give each its own name"))
    return problems


def _parallel_problems(config: "RunConfig") -> list[Problem]:
    parallel = config.parallel
    problems: list[Problem] = []
    size, at = parallel.expert_parallel_size, ("parallel", "expert_parallel_size")
    if parallel.zero_stage == 0 and parallel.precision != "fp32":
        words = f"0 does not train in {parallel.precision}; use zero_stage 1, or precision fp32"
        problems.append((("parallel", "zero_stage"), words))
    if parallel.use_cpu and parallel.precision == "fp16":
        words = "'fp16' does not train on CPUs; use bf16 or fp32, or drop use_cpu"
        problems.append((("parallel", "precision"), words))
    if size == 1:
        return problems
    if parallel.zero_stage == 3:
        words = f"{size} does not go with ZeRO stage 3; use 1, or zero_stage 2"
        problems.append((at, words))
    counts = {
        count
        for student in config.students
        for count in (student.attention_experts, student.feedforward_experts)
        if count > 1
    }
    if not counts:
        problems.append((at, f"{size}, but no student has experts; use 1, or moe such as 1,4"))
    for count in sorted(counts):
        if count % size:
            words = f"{size} does not divide the {count} experts of a student; use a divisor"
            problems.append((at, words))
    return problems


def check_world_size(config: "RunConfig", world_size: int) -> None:
    """Refuses a number of processes that the run cannot be spread over.

    Raises:
        ConfigError: the expert-parallel size does not divide `world_size`.
    """
    size = config.parallel.expert_parallel_size
    if world_size % size:
        raise ConfigError(
            f"parallel.expert_parallel_size: {size} does not divide the {world_size} processes of "
            f"this run; start a multiple of {size}, or use expert_parallel_size 1"
        )

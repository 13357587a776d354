"""Passes that take packed batches, compiled and recorded ones, against those on padded batches."""

import logging
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch._subclasses import FakeTensorMode

from minimoe_dist.data.batches import IGNORED_LABEL, MicroBatch
from minimoe_dist.data.loader import StepBatch
from minimoe_dist.data.packed import pack
from minimoe_dist.data.placing import Placer
from minimoe_dist.data.signal_rows import SignalRows
from minimoe_dist.models.build import build_student
from minimoe_dist.models.mlm_head import MiniMoeForRelationsAndMaskedLM
from minimoe_dist.models.teacher import RelationTeacher, teacher_of
from minimoe_dist.train import passes as passes_module
from minimoe_dist.train.captured import CapturedPasses
from minimoe_dist.train.distillation import Distiller
from minimoe_dist.train.engine import StudentEngine
from minimoe_dist.train.fastest_passes import choose_passes
from minimoe_dist.train.objectives import JointObjective, MaskedLmObjective, RelationObjective
from minimoe_dist.train.passes import CompiledPasses, EagerPasses
from minimoe_dist.train.schedule import make_schedule
from tests.distributed import run_distributed
from tests.train import runs
from tests.train.recording import RerunRecorder
from tests.train.runs import Layout

DEVICE = torch.device("cpu")
STUDENTS = [(1, 1), (1, 4), (2, 2)]
LAYOUT = Layout()


def make_teacher(layers: int, states: bool = False) -> RelationTeacher:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": layers}
    return teacher_of(build_student(runs.student_options((1, 1), **sizes), 3), states)


def make_objective(masked: bool, layers: int = 2, state_weight: float = 0.0) -> Any:
    teacher = make_teacher(layers, bool(state_weight))
    relations = RelationObjective(teacher, runs.RELATION_HEADS, state_weight=state_weight)
    return JointObjective([relations, MaskedLmObjective(0.1)]) if masked else relations


def make_engines(
    mixtures: list[tuple[int, int]], layout: Layout, masked: bool, layers: int = 2, **options: Any
) -> list[Any]:
    classes: dict[str, Any] = {"model_class": MiniMoeForRelationsAndMaskedLM} if masked else {}
    return [
        StudentEngine(
            f"s{index}",
            build_student(
                runs.student_options(moe, dropout=0.1, num_hidden_layers=layers, **options),
                runs.SEED + index,
                **classes,
            ),
            runs.settings_of(layout, dist.get_world_size()),
            runs.OPTIMIZER,
            1,
            DEVICE,
        )
        for index, moe in enumerate(mixtures)
    ]


def make_passes(kind: str, engines: list[Any], objective: Any) -> Any:
    if kind in ("padded", "packed"):
        return EagerPasses(engines, objective, runs.SEED, packed=kind == "packed")
    compiled = CompiledPasses(engines, objective, runs.SEED)
    if kind == "compiled":
        return compiled
    eager = EagerPasses(engines, objective, runs.SEED, packed=True)
    return CapturedPasses(eager, RerunRecorder())


def masked_batch(batch: StepBatch, step: int) -> StepBatch:
    generator = torch.Generator().manual_seed(step)
    for micro in batch.micro_batches:
        chosen = torch.rand(micro.input_ids.shape, generator=generator) < 0.1
        chosen &= micro.attention_mask
        micro.labels = torch.where(chosen, micro.input_ids, IGNORED_LABEL)
    return batch


def rows(
    kind: str,
    mixtures: list[tuple[int, int]],
    layout: Layout = LAYOUT,
    masked: bool = False,
    steps: int = 4,
    layers: int = 2,
    state_weight: float = 0.0,
) -> list[list[float]]:
    """Loss, balance, norm and tokens by expert of every student and step."""
    options = {"state_width": 32} if state_weight else {}
    engines = make_engines(mixtures, layout, masked, layers, **options)
    objective = make_objective(masked, layers, state_weight)
    schedule = make_schedule("linear", runs.OPTIMIZER.learning_rate, 20, 0.1)
    distiller = Distiller(
        engines, objective, schedule, seed=runs.SEED, device=DEVICE,
        passes=make_passes(kind, engines, objective), max_length=runs.LENGTH,
    )  # fmt: skip
    found = []
    for step in range(steps):
        batch = runs.make_batch(step, layout, dist.get_rank(), dist.get_world_size())
        if masked:
            batch = masked_batch(batch, step)
        metrics = distiller.train_step(batch, step, stop_requested=False)
        found.append(
            [
                number
                for student in metrics.students.values()
                for number in (
                    student.loss, student.balance, student.gradient_norm,
                    *(n for block in student.tokens_per_expert for n in block),
                )
            ]
        )  # fmt: skip
        held_out = distiller.evaluate(batch.micro_batches)
        found.append(list(held_out.values()))
    return found


def recalled_losses(kind: str, dtype: str | None, steps: int = 4) -> list[float]:
    """A student's losses, with the teacher's signals as a cache of a type gives them."""
    engines, objective = make_engines([(1, 4)], LAYOUT, False), make_objective(False)
    distiller = Distiller(
        engines, objective, make_schedule("constant", 1e-2, 20, 0.0), seed=runs.SEED,
        device=DEVICE, passes=make_passes(kind, engines, objective), max_length=runs.LENGTH,
    )  # fmt: skip
    teacher = objective.teacher
    if dtype is not None:
        objective.teacher = nn.Identity()  # which is not to be asked
    losses = []
    for step in range(steps):
        batch = runs.make_batch(step, LAYOUT, 0, 1)
        if dtype is not None:
            batch.micro_batches = [
                distiller.place(micro, kept_signals(teacher, micro, dtype))
                for micro in batch.micro_batches
            ]
        metrics = distiller.train_step(batch, step, stop_requested=False)
        losses.append(metrics.students["s0"].loss)
    return losses


def kept_signals(teacher: Any, micro: MicroBatch, dtype: str) -> SignalRows:
    signals = teacher(micro.input_ids, micro.attention_mask, micro.token_type_ids)
    return SignalRows.encode([signal[micro.attention_mask] for signal in signals], dtype)


@pytest.mark.parametrize("kind", ["padded", "packed", "captured"])
def test_signals_of_a_cache_teach_as_the_teacher_does(kind: str) -> None:
    (wanted,) = run_distributed(recalled_losses, 1, kind, None)
    (exact,) = run_distributed(recalled_losses, 1, kind, "float32")
    assert exact == pytest.approx(wanted, rel=2e-6)
    for dtype, rel in (("bfloat16", 1e-2), ("int8", 1e-2)):
        (close,) = run_distributed(recalled_losses, 1, kind, dtype)
        assert close == pytest.approx(wanted, rel=rel) and close != wanted


def assert_close(found: list[list[float]], wanted: list[list[float]]) -> None:
    for one, other in zip(found, wanted, strict=True):
        assert one == pytest.approx(other, rel=2e-5, abs=1e-6)


@pytest.mark.parametrize("masked", [False, True])
def test_packed_batches_train_as_padded_ones_do(masked: bool) -> None:
    for one in STUDENTS:
        padded, packed = (
            run_distributed(rows, 1, kind, [one], LAYOUT, masked)[0]
            for kind in ("padded", "packed")
        )
        assert_close(packed, padded)


@pytest.mark.parametrize("masked", [False, True])
def test_last_states_are_learnt_alike_however_passes_run(masked: bool) -> None:
    for one in STUDENTS[:2]:
        padded, packed, captured = (
            run_distributed(rows, 1, kind, [one], LAYOUT, masked, 4, 2, 0.5)[0]
            for kind in ("padded", "packed", "captured")
        )
        assert_close(packed, padded)
        assert captured == packed
        without = run_distributed(rows, 1, "packed", [one], LAYOUT, masked)[0]
        assert all(some[0] > other[0] for some, other in zip(packed, without, strict=True))


def test_packed_batches_train_as_padded_ones_do_on_two_ranks() -> None:
    padded = run_distributed(rows, 2, "padded", [(1, 4)])
    packed = run_distributed(rows, 2, "packed", [(1, 4)])
    assert packed[0] == packed[1]
    assert_close(packed[0], padded[0])


@pytest.mark.parametrize(("precision", "masked"), [("fp32", True), ("bf16", False)])
def test_played_passes_do_what_those_do_that_were_recorded(precision: str, masked: bool) -> None:
    layout = Layout(precision=precision)
    for one in STUDENTS:
        packed, captured = (
            run_distributed(rows, 1, kind, [one], layout, masked)[0]
            for kind in ("packed", "captured")
        )
        assert captured == packed


class PaddedTeacher(torch.nn.Module):
    """A teacher that takes padded batches only, as one that ranks share out."""

    def __init__(self, teacher: RelationTeacher) -> None:
        super().__init__()
        self.teacher = teacher

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.teacher(*inputs)


def rows_of_a_padded_teacher(kind: str) -> list[list[float]]:
    own = make_teacher
    globals()["make_teacher"] = lambda *arguments: PaddedTeacher(own(*arguments))
    try:
        return rows(kind, [(1, 4)])
    finally:
        globals()["make_teacher"] = own


@pytest.mark.parametrize("kind", ["packed", "captured"])
def test_students_are_packed_also_beside_a_teacher_that_is_not(kind: str) -> None:
    found = run_distributed(rows_of_a_padded_teacher, 1, kind)[0]
    assert_close(found, run_distributed(rows, 1, "packed", [(1, 4)])[0])


def test_each_of_several_played_students_gets_what_it_would_have_got_alone() -> None:
    together = run_distributed(rows, 1, "captured", [(1, 4), (1, 1)], LAYOUT, False)[0]
    alone = run_distributed(rows, 1, "captured", [(1, 4)], LAYOUT, False)[0]
    for both, one in zip(together, alone, strict=True):
        assert both[: len(one)] == one


def recorded_sizes(lengths: list[int]) -> tuple[int, list[float]]:
    """How many recordings batches of several sizes need, and the losses; one student."""
    layout = Layout(accumulation=1)
    engines, objective = make_engines([(1, 4)], layout, False), make_objective(False)
    recorder = RerunRecorder()
    passes = CapturedPasses(EagerPasses(engines, objective, runs.SEED, packed=True), recorder)
    schedule = make_schedule("constant", 1e-3, 20, 0.0)
    distiller = Distiller(
        engines, objective, schedule, seed=1, device=DEVICE, passes=passes, max_length=16
    )
    losses = []
    for step, length in enumerate(lengths):
        ids = torch.randint(1, 60, (16, 16), generator=torch.Generator().manual_seed(step))
        mask = (torch.arange(16) < length).expand(16, 16)
        micro = MicroBatch(ids * mask, mask, torch.zeros_like(ids), torch.arange(16))
        metrics = distiller.train_step(StepBatch([micro], 0), step, False)
        losses.append(metrics.students["s0"].loss)
    return recorder.recorded, losses


def test_one_recording_serves_all_batches_of_a_size() -> None:
    # 16 samples of up to 16: 128 rows hold 8 tokens of each, 256 rows the rest.
    recorded, losses = run_distributed(recorded_sizes, 1, [16, 3, 8, 9, 1, 16])[0]
    assert recorded == 2 * 2
    assert len(set(losses)) == 6


def compiled_rows(
    moe: tuple[int, int], backend: str, layers: int, state_weight: float = 0.0
) -> list[list[list[float]]]:
    """Of packed passes, and of compiled ones, by a backend of PyTorch's compiler."""
    own = torch.compile
    torch.compile = lambda function, **options: own(function, backend=backend, **options)
    kinds = ("packed", "compiled")
    return [rows(kind, [moe], steps=2, layers=layers, state_weight=state_weight) for kind in kinds]


@pytest.mark.parametrize("moe", STUDENTS)
def test_a_pass_is_one_graph_for_compilers(moe: tuple[int, int]) -> None:
    for state_weight in (0.0, 0.5):
        packed, compiled = run_distributed(compiled_rows, 1, moe, "aot_eager", 2, state_weight)[0]
        assert_close(compiled, packed)


def test_pytorchs_compiler_makes_the_same_of_a_pass() -> None:
    packed, compiled = run_distributed(compiled_rows, 1, (1, 2), "inductor", 1)[0]
    assert_close(compiled, packed)


def broken_rows() -> tuple[list[Any], list[str]]:
    """Rows where nothing compiles, and what the log says."""
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    passes_module._log.addHandler(handler)

    def compile_nothing(function: Any, **options: Any) -> Any:
        def fail(*arguments: Any) -> None:
            raise RuntimeError("no compiler\nand a long story")

        return fail

    torch.compile = compile_nothing
    return rows("compiled", [(1, 4)], steps=2), said


def test_what_does_not_compile_runs_eagerly_and_says_so_once() -> None:
    found, said = run_distributed(broken_rows, 1)[0]
    assert found == run_distributed(rows, 1, "packed", [(1, 4)], LAYOUT, False, 2)[0]
    assert said == [
        "the teacher's pass is not compiled: RuntimeError: no compiler",
        "s0's pass is not compiled: RuntimeError: no compiler",
    ]


class UnrecordableRecorder(RerunRecorder):
    def training(self, run: Any, parameters: Any) -> Any:
        raise RuntimeError("operation not permitted when stream is capturing")


def unrecorded_rows() -> list[list[float]]:
    own = RerunRecorder
    globals()["RerunRecorder"] = UnrecordableRecorder
    try:
        return rows("captured", [(1, 4)], steps=2)
    finally:
        globals()["RerunRecorder"] = own


def test_what_cannot_be_recorded_runs_as_it_is() -> None:
    found = run_distributed(unrecorded_rows, 1)[0]
    assert found == run_distributed(rows, 1, "packed", [(1, 4)], LAYOUT, False, 2)[0]


def fake_pass(moe: tuple[int, int], masked: bool) -> int:
    """A whole pass where no number is known, so that asking for one raises an error."""
    engine = make_engines([moe], LAYOUT, masked)[0]
    objective = make_objective(masked)
    passes = EagerPasses([engine], objective, 1, packed=True)
    batch = runs.make_batch(0, LAYOUT, 0, 1)
    if masked:
        batch = masked_batch(batch, 0)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    packed = pack(batch.micro_batches[0], runs.LENGTH)
    engine.module.train()
    with mode:
        on_device = packed.with_numbers(mode.from_tensor(packed.numbers))
        output = passes.forward(0, *passes.teach(on_device))
        output.parts.sum().backward()
    return len(output.parts)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("moe", STUDENTS)
def test_a_pass_asks_the_device_for_nothing(moe: tuple[int, int], masked: bool) -> None:
    assert run_distributed(fake_pass, 1, moe, masked) == [2 if masked else 1]


def chosen(stage: int, expert_parallel: bool) -> str:
    """The passes on a GPU, by name; there is none, so CUDA graphs are not asked for."""
    layout = Layout(stage)
    engines, objective = make_engines([(1, 4)], layout, False), make_objective(False)
    if expert_parallel:
        engines[0].expert_parallel_size = 2
    try:
        passes = choose_passes(engines, objective, 1, torch.device("cuda"))
    except (AssertionError, RuntimeError):
        return "CapturedPasses"
    return type(passes).__name__


@pytest.mark.parametrize(
    ("stage", "expert_parallel", "wanted"),
    [
        (0, False, "CompiledPasses"),
        (1, False, "CapturedPasses"),
        (2, False, "CompiledPasses"),
        (3, False, "EagerPasses"),
        (1, True, "EagerPasses"),
    ],
)
def test_the_fastest_passes_that_apply_are_chosen(
    stage: int, expert_parallel: bool, wanted: str
) -> None:
    assert run_distributed(chosen, 1, stage, expert_parallel) == [wanted]


def test_a_cpu_runs_padded_passes_eagerly() -> None:
    placed = Placer(DEVICE, packed=False)(runs.make_batch(0, LAYOUT, 0, 1).micro_batches[0])
    assert isinstance(placed.batch, MicroBatch)

"""A student under DeepSpeed: bad numbers leave no trace, precisions, norms, groups, state."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from minimoe_dist.models.build import build_student
from minimoe_dist.train import engine
from minimoe_dist.train.engine import parameter_groups
from minimoe_dist.train.expert_parallel import ExpertParallelGroup, apply_expert_parallelism
from minimoe_dist.train.optimizer_state import KINDS
from tests.distributed import run_distributed
from tests.train import runs
from tests.train.runs import Layout

ROOT = Path(__file__).parent.parent.parent
LAYOUTS = [Layout(0, 2), Layout(1, 2), Layout(2, 2), Layout(3, 1)]
LAYOUTS += [Layout(stage, 1 if stage == 3 else 2, "bf16") for stage in (1, 2, 3)]
STAGES = [f"stage {layout.zero_stage} {layout.precision}" for layout in LAYOUTS]


class FaultyTeacher(runs.RandomTeacher):
    """Gives one value for another in one micro-batch on one rank."""

    fault: float | None = None
    rank = 1

    def forward(self, input_ids, mask, segments):
        query, key, value = super().forward(input_ids, mask, segments)
        if self.fault is not None and dist.get_rank() == self.rank:
            query[0, 0, 0] = self.fault
            self.fault = None
        return query, key, value


def _distiller(layout, configs=None, teacher=None):
    configs = configs or [runs.student_options((1, 4))]
    return runs.make_distiller(configs, layout, teacher=teacher)


def _step(distiller, layout, step):
    batch = runs.make_batch(step, layout, dist.get_rank(), dist.get_world_size())
    return distiller.train_step(batch, step, stop_requested=False).students


def _state(student):
    """Everything that a step may change: masters, moments, Adam's count, the forward's weights."""
    state = {
        f"{kind}/{name}": student.read_state(name, kind)
        for name in student.state_shapes()
        for kind in KINDS
    }
    state["steps"] = torch.tensor(student.counters()["adam_steps"])
    micro = runs.make_batch(50, Layout(), 0, 1).micro_batches[0]
    student.module.eval()
    with torch.no_grad():
        output = student(input_ids=micro.input_ids, attention_mask=micro.attention_mask)
    state["signals"] = torch.stack(output.signals)
    return state


def _differences(first, second):
    assert first.keys() == second.keys()
    return [name for name, value in first.items() if not torch.equal(value, second[name])]


def _bad_step(layout, fault):
    """A good step, a bad one and a good one, beside a run without the bad one."""
    teacher = FaultyTeacher()
    distiller, control = _distiller(layout, teacher=teacher), _distiller(layout)
    _step(distiller, layout, 0)
    _step(control, layout, 0)
    before = _state(distiller.students[0])
    teacher.fault = fault
    bad = _step(distiller, layout, 1)["s0"]
    after = _state(distiller.students[0])
    good, wanted = _step(distiller, layout, 2)["s0"], _step(control, layout, 2)["s0"]
    return {
        "applied": bad.applied,
        "loss": bad.loss,
        "norm": bad.gradient_norm,
        "changed": _differences(before, after),
        "next applied": good.applied,
        "next": _differences(_state(distiller.students[0]), _state(control.students[0])),
        "next norms": (good.gradient_norm, wanted.gradient_norm),
    }


@pytest.mark.parametrize("layout", LAYOUTS, ids=STAGES)
def test_a_loss_that_is_no_number_on_one_rank_leaves_no_trace(layout) -> None:
    for seen in run_distributed(_bad_step, 2, layout, math.nan):
        assert seen["applied"] is False
        assert math.isnan(seen["loss"]) and not math.isfinite(seen["norm"])
        assert seen["changed"] == []
        assert seen["next applied"] is True
        assert seen["next"] == []
        assert seen["next norms"][0] == seen["next norms"][1]


def test_an_infinite_signal_leaves_no_trace() -> None:
    for seen in run_distributed(_bad_step, 2, Layout(1, 2), math.inf):
        assert seen["applied"] is False and not math.isfinite(seen["loss"])
        assert seen["changed"] == [] and seen["next"] == []


def _one_bad_student(layout):
    """Two students, of which one has a bad step on one rank; the other one beside it alone."""
    configs = [runs.student_options((1, 4)), runs.student_options((1, 1))]
    both, alone = _distiller(layout, configs), _distiller(layout, configs)
    for distiller in (both, alone):
        _step(distiller, layout, 0)

    def spoil(module, inputs, output):
        query, key, value = output.signals
        return output._replace(signals=(query * math.nan, key, value))

    before = _state(both.students[0])
    handle = both.students[0].module.register_forward_hook(spoil) if dist.get_rank() == 1 else None
    metrics = _step(both, layout, 1)
    if handle is not None:
        handle.remove()
    _step(alone, layout, 1)
    return {
        "applied": {name: student.applied for name, student in metrics.items()},
        "changed": _differences(before, _state(both.students[0])),
        "other": _differences(_state(both.students[1]), _state(alone.students[1])),
    }


@pytest.mark.parametrize("stage", [0, 1])
def test_one_students_bad_step_is_not_the_others(stage) -> None:
    for seen in run_distributed(_one_bad_student, 2, Layout(stage, 2)):
        assert seen["applied"] == {"s0": False, "s1": True}
        assert seen["changed"] == [] and seen["other"] == []


def _losses(layout, steps):
    distiller = _distiller(layout)
    return [_step(distiller, layout, step)["s0"].loss for step in range(steps)]


@pytest.mark.parametrize("layout", LAYOUTS[4:], ids=STAGES[4:])
def test_bfloat16_trains_nearly_as_float32_does(layout) -> None:
    half = run_distributed(_losses, 2, layout, 20)[0]
    whole = run_distributed(_losses, 1, Layout(0), 20)[0]
    assert sum(half[-5:]) < 0.97 * sum(half[:5])
    assert half == pytest.approx(whole, rel=0.02)


def _norms(layouts):
    return [_step(_distiller(layout), layout, 0)["s0"].gradient_norm for layout in layouts]


def test_all_stages_report_the_same_gradient_norm() -> None:
    norms = run_distributed(_norms, 2, LAYOUTS[:4])
    assert norms[0] == norms[1]
    assert norms[0] == pytest.approx([norms[0][0]] * 4, rel=1e-5)
    assert norms[0][0] > runs.OPTIMIZER.max_gradient_norm  # as it was before clipping


def _ownership(layout):
    engine._SMALLEST_SHARE = 10  # or replicas leave all of it to the first
    student = _distiller(layout, [runs.student_options((2, 4))]).students[0]
    owned = {}
    for part in student.state_slices():
        if part.kind == "master":
            first, *_ = part.owned.indices(part.values.numel())
            owned[part.name, part.start + first] = part.values[part.owned].clone()
    return owned, student.whole_weights(), student.state_shapes()


@pytest.mark.parametrize(
    ("layout", "ranks"),
    [
        (Layout(0, 1), 2),
        (Layout(0, 2), 4),
        (Layout(1, 2), 2),
        (Layout(2, 2), 4),
        (Layout(2, 1, "bf16"), 2),
        (Layout(3, 1), 2),
    ],
)
def test_every_number_of_every_parameter_has_one_owner(layout, ranks) -> None:
    results = run_distributed(_ownership, ranks, layout)
    assert all(owned for owned, _, _ in results)
    pieces: dict[str, dict[int, torch.Tensor]] = {}
    for owned, _, shapes in results:
        assert shapes == results[0][2]
        for (name, start), values in owned.items():
            if values.numel():
                assert start not in pieces.setdefault(name, {})
                pieces[name][start] = values
    whole = dict(build_student(runs.student_options((2, 4)), runs.SEED).named_parameters())
    assert pieces.keys() == whole.keys()
    for name, parts in pieces.items():
        joined = torch.cat([parts[start] for start in sorted(parts)])
        values = whole[name].flatten()
        # DeepSpeed makes its masters of the weights that the forward pass uses.
        values = values.bfloat16().float() if layout.precision == "bf16" else values
        assert torch.equal(joined, values), name
        assert results[0][2][name] == whole[name].shape


@pytest.mark.parametrize(("layout", "ranks"), [(Layout(0, 1), 1), (Layout(2, 2), 4)])
def test_rank_0_gathers_the_whole_student(layout, ranks) -> None:
    (_, weights, _), *others = run_distributed(_ownership, ranks, layout)
    whole = dict(build_student(runs.student_options((2, 4)), runs.SEED).named_parameters())
    assert weights.keys() == whole.keys()
    assert all(torch.equal(weights[name], value) for name, value in whole.items())
    assert all(rank_weights == {} for _, rank_weights, _ in others)


def grouped():
    """Groups of a rank's part of a student, with names instead of parameters."""
    model = build_student(runs.student_options((2, 4)), seed=0)
    apply_expert_parallelism(model, ExpertParallelGroup(2, 0, None, "ep_size_2"))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = parameter_groups(model, weight_decay=0.5)
    named = [{**g, "params": [names[id(p)] for p in g["params"]]} for g in groups]
    return names, named


def test_every_parameter_is_in_one_group() -> None:
    names, groups = grouped()
    listed = [name for group in groups for name in group["params"]]
    assert sorted(listed) == sorted(names.values())
    assert all(group["params"] == sorted(group["params"]) for group in groups)


def test_biases_and_norms_are_not_decayed_stacked_ones_neither() -> None:
    for group in grouped()[1]:
        without = [name.endswith(("bias", "LayerNorm.weight")) for name in group["params"]]
        assert set(without) == {group["weight_decay"] == 0.0}
        assert group["weight_decay"] in (0.0, 0.5)


def test_experts_on_several_ranks_have_groups_of_their_own() -> None:
    marked = [group for group in grouped()[1] if group.get("moe")]
    assert [group["name"] for group in marked] == ["ep_size_2", "ep_size_2"]
    stacked = [name for group in marked for name in group["params"]]
    assert len(stacked) == 2 * 2 * 6 and not [name for name in stacked if "gate" in name]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_float16_searches_its_scale_and_resumes_with_it(tmp_path) -> None:
    command = [sys.executable, "-m", "tests.train.float16", str(tmp_path)]
    environment = {**os.environ, "DS_ACCELERATOR": "cuda", "LOCAL_RANK": "0"}
    result = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200
    )
    assert result.returncode == 0, result.stderr
    search, unbroken, resumed = json.loads(result.stdout.splitlines()[-1])
    assert not search[0][1] and search[-1][1]  # the scale begins too high and is found
    assert search[-1][2] < search[0][2]
    assert search[-1][0] < 0.9 * search[0][0]
    assert [row[1:] for row in resumed] == [row[1:] for row in unbroken]
    assert [row[0] for row in resumed] == pytest.approx([row[0] for row in unbroken], rel=1e-2)

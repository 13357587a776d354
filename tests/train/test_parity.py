"""A step means the same in every layout: against a plain PyTorch loop, clipping active."""

from dataclasses import replace

import pytest
import torch

from minimoe_dist.models.build import build_student
from minimoe_dist.models.configuration import MiniMoeConfig
from tests.distributed import run_distributed
from tests.train import runs
from tests.train.runs import Layout

STEPS = 20


def _train(
    config: MiniMoeConfig, layout: Layout, steps: int, factors: tuple[float, float] = (1.0, 1.0)
):
    experts, routers = factors
    optimizer = replace(runs.OPTIMIZER, expert_rate_factor=experts, router_rate_factor=routers)
    distiller = runs.make_distiller([config], layout, optimizer=optimizer)
    rows = runs.run_steps(distiller, layout, 0, steps)
    return rows, distiller.students[0].whole_weights()


def _relation_sum(student, teacher, mask):
    """KL of relations written out plainly, summed over Q, K, V and rows."""
    total = torch.zeros(())
    for ours, theirs in zip(student, teacher, strict=True):
        logs = []
        for signal in (theirs, ours):
            heads = signal.unflatten(-1, (runs.RELATION_HEADS, -1)).transpose(1, 2)
            scores = heads @ heads.transpose(-1, -2) / heads.shape[-1] ** 0.5
            scores = scores.masked_fill(~mask[:, None, None, :], -1e9)
            logs.append(scores.log_softmax(-1))
        rows = (logs[0].exp() * (logs[0] - logs[1])).sum(-1)
        total = total + (rows * mask[:, None, :]).sum()
    return total


def _plain_loop(config: MiniMoeConfig, steps: int, factors: tuple[float, float] = (1.0, 1.0)):
    """The same training written without the project's trainer: one process, torch's AdamW."""
    layout, optimizer_options = Layout(), runs.OPTIMIZER
    model, teacher = build_student(config, runs.SEED), runs.RandomTeacher()
    groups = []
    for name, parameter in model.named_parameters():
        decays = not name.endswith(("bias", "LayerNorm.weight"))
        is_experts = parameter.dim() > (2 if decays else 1)
        factor = factors[0] if is_experts else factors[1] if "gate" in name else 1.0
        group = {"params": [parameter], "factor": factor}
        groups.append(group if decays else {**group, "weight_decay": 0.0})
    optimizer = torch.optim.AdamW(
        groups, lr=1.0, eps=optimizer_options.epsilon, weight_decay=optimizer_options.weight_decay
    )
    losses = []
    for step in range(steps):
        micro_batches = runs.make_batch(step, layout, 0, 1).micro_batches
        rows = sum(int(m.attention_mask.sum()) for m in micro_batches) * 3 * runs.RELATION_HEADS
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        step_loss = 0.0
        for micro in micro_batches:
            output = model.train()(micro.input_ids, attention_mask=micro.attention_mask)
            signals = teacher(micro.input_ids, None, None)
            loss = _relation_sum(output.signals, signals, micro.attention_mask) / rows
            blocks = []
            for probability_sum, count in output.routers:
                tokens = count.sum()
                blocks.append(len(count) * (probability_sum / tokens * count / tokens).sum())
            if blocks:
                loss = loss + 0.01 * torch.stack(blocks).mean() / len(micro_batches)
            loss.backward()
            step_loss += loss.item()
        norm = torch.nn.utils.clip_grad_norm_(
            model.parameters(), optimizer_options.max_gradient_norm
        )
        rate = 3e-3 * ((step + 1) / 3 if step < 2 else 1 - (step - 2) / 18)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        optimizer.step()
        losses.append([step_loss, norm.item()])
    return losses, dict(model.named_parameters())


def _assert_equal(rows, weights, expected_rows, expected_weights) -> None:
    assert torch.allclose(torch.tensor(rows), torch.tensor(expected_rows), rtol=1e-5, atol=1e-5)
    for name, value in expected_weights.items():
        if name.endswith("key.bias"):
            continue  # its true gradient is zero, and Adam amplifies the rounding
        difference = (weights[name] - value).abs().max()
        assert difference < 1e-5, f"{name} differs by {difference}"


_LAYOUTS = [
    (moe, ranks, stage, expert_parallel)
    for moe, ranks, stage, expert_parallel in [
        ((1, 1), 1, 0, 1),
        ((1, 1), 2, 1, 1),
        ((1, 1), 2, 3, 1),
        ((1, 4), 1, 0, 1),
        ((1, 4), 2, 0, 2),
        ((1, 4), 2, 1, 2),
        ((4, 4), 2, 2, 2),
        ((4, 4), 2, 0, 1),
        ((4, 1), 2, 1, 2),
        ((1, 4), 2, 3, 1),
        ((1, 4), 4, 1, 2),
    ]
]


@pytest.mark.parametrize(("moe", "ranks", "stage", "expert_parallel"), _LAYOUTS)
def test_twenty_steps_equal_a_plain_loop(moe, ranks, stage, expert_parallel) -> None:
    config = runs.student_options(moe)
    layout = Layout(zero_stage=stage, expert_parallel_size=expert_parallel)
    rows, weights = run_distributed(_train, ranks, config, layout, STEPS)[0]
    expected_rows, expected_weights = _plain_loop(config, STEPS)
    clipped = sum(norm > runs.OPTIMIZER.max_gradient_norm for _, norm in expected_rows)
    assert clipped > STEPS / 2, "clipping must be active, or this test compares too little"
    _assert_equal(rows, weights, expected_rows, expected_weights)


@pytest.mark.parametrize(
    ("ranks", "stage", "expert_parallel"), [(1, 0, 1), (2, 0, 2), (2, 1, 2), (2, 1, 1), (2, 3, 1)]
)
def test_experts_and_routers_may_have_a_rate_of_their_own(ranks, stage, expert_parallel) -> None:
    config, factors = runs.student_options((2, 4)), (0.25, 0.0)
    layout = Layout(zero_stage=stage, expert_parallel_size=expert_parallel)
    rows, weights = run_distributed(_train, ranks, config, layout, STEPS, factors)[0]
    expected_rows, expected_weights = _plain_loop(config, STEPS, factors)
    _assert_equal(rows, weights, expected_rows, expected_weights)
    assert rows != _plain_loop(config, STEPS)[0]
    fresh = build_student(config, runs.SEED).state_dict()
    routers = [name for name in fresh if "gate" in name]
    kept = [torch.equal(weights[name], fresh[name]) for name in routers]
    assert routers and all(kept)

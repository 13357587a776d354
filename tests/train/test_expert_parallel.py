"""Experts spread over ranks: the exchange against one process that holds them all."""

import pytest
import torch
import torch.distributed as dist

from minimoe_dist.models.build import build_student
from minimoe_dist.models.experts import LocalDispatcher, grouped_linear
from minimoe_dist.train.engine import initialize_communication
from minimoe_dist.train.expert_parallel import (
    AllToAllDispatcher,
    ExpertParallelGroup,
    apply_expert_parallelism,
    create_expert_parallel_group,
    expert_parameter_names,
    is_expert_parallel,
)
from tests.distributed import run_distributed
from tests.train import runs
from tests.train.runs import Layout

EXPERTS, INPUTS, OUTPUTS = 4, 6, 5
# The expert of every token, by rank; ranks 0 and 1 hold the experts 0, 1 and 2, 3.
ASSIGNMENTS = {
    "mixed": [[3, 0, 2, 1, 0], [1, 1, 3]],
    "every token to the other rank": [[2, 3, 2], [0, 1]],
    "every token stays": [[0, 1, 0], [3, 2]],
    "every token to one rank": [[0, 1, 1, 0], [0, 1, 0]],
    "every token to one expert": [[3, 3], [3, 3, 3, 3]],
    "a rank without tokens": [[], [0, 3, 2, 2]],
    "no token anywhere": [[], []],
}


def _problem(assignment, dtype):
    """All ranks' tokens, upstream gradients and the experts, on every rank."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(shape, generator=generator).to(dtype)

    tokens = [draw(len(experts), INPUTS) for experts in assignment]
    upstream = [draw(len(experts), OUTPUTS) for experts in assignment]
    return tokens, upstream, draw(EXPERTS, OUTPUTS, INPUTS), draw(EXPERTS, OUTPUTS)


def _through_experts(plan, tokens, weight, bias):
    rows = plan.to_experts(tokens)
    return plan.to_tokens(grouped_linear(rows, weight, bias, plan.tokens_per_expert))


def _exchange_all(dtype):
    """Per assignment, what went through two ranks and what one process gives, as plain tensors."""
    initialize_communication()
    group, rank = create_expert_parallel_group(2), dist.get_rank()
    results = {}
    for name, assignment in ASSIGNMENTS.items():
        tokens, upstream, weight, bias = _problem(assignment, dtype)
        mine = tokens[rank].clone().requires_grad_()
        experts = [t.chunk(2)[rank].clone().requires_grad_() for t in (weight, bias)]
        plan = AllToAllDispatcher(group).plan(torch.tensor(assignment[rank]).long(), EXPERTS)
        out = _through_experts(plan, mine, *experts)
        out.backward(upstream[rank])
        given = [out.detach(), mine.grad, *(e.grad for e in experts), plan.tokens_per_expert]

        whole = torch.cat(tokens).requires_grad_()
        experts = [weight.requires_grad_(), bias.requires_grad_()]
        everything = [expert for experts in assignment for expert in experts]
        plan = LocalDispatcher().plan(torch.tensor(everything).long(), EXPERTS)
        out = _through_experts(plan, whole, *experts)
        out.backward(torch.cat(upstream))
        sizes = [len(experts) for experts in assignment]
        wanted = [t.split(sizes)[rank] for t in (out.detach(), whole.grad)]
        wanted += [t.chunk(2)[rank] for t in (*(e.grad for e in experts), plan.tokens_per_expert)]
        results[name] = list(zip(given, wanted, strict=True))
    return results


@pytest.fixture(scope="module")
def exchanged():
    return {
        name: run_distributed(_exchange_all, 2, dtype)
        for name, dtype in {"float32": torch.float32, "bfloat16": torch.bfloat16}.items()
    }


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("assignment", ASSIGNMENTS)
@pytest.mark.parametrize(
    ("place", "what"),
    enumerate(["outputs", "token gradients", "weight gradients", "bias gradients", "counts"]),
)
def test_the_exchange_equals_one_process(place, what, assignment, dtype, exchanged) -> None:
    tolerance = 1e-6 if dtype == "float32" else 0.05
    for rank_results in exchanged[dtype]:
        given, wanted = rank_results[assignment][place]
        assert given.shape == wanted.shape and given.dtype == wanted.dtype
        assert torch.allclose(given, wanted, rtol=tolerance, atol=tolerance), what


def make_part(size, rank, moe=(2, 4)):
    """A rank's part of a student, without a process group."""
    model = build_student(runs.student_options(moe), seed=0)
    apply_expert_parallelism(model, ExpertParallelGroup(size, rank, None, f"ep_size_{size}"))
    return model


def test_the_parts_of_all_ranks_make_up_the_student() -> None:
    whole = build_student(runs.student_options((2, 4)), seed=0)
    parts = [make_part(2, rank).state_dict() for rank in range(2)]
    stacked = expert_parameter_names(whole)
    assert len(stacked) == 2 * 2 * 6
    for name, value in whole.state_dict().items():
        pieces = [part[name] for part in parts]
        assert torch.equal(torch.cat(pieces) if name in stacked else pieces[0], value), name
        assert name in stacked or torch.equal(*pieces)


def test_only_experts_are_kept_from_being_averaged_over_all_ranks() -> None:
    model = make_part(2, 1)
    marked = {name for name, p in model.named_parameters() if is_expert_parallel(p)}
    assert marked == expert_parameter_names(model)
    assert {p.group_name for p in model.parameters() if is_expert_parallel(p)} == {"ep_size_2"}


def test_a_part_names_its_parameters_as_the_whole_does() -> None:
    whole = build_student(runs.student_options((2, 4)), seed=0)
    assert list(make_part(2, 1).state_dict()) == list(whole.state_dict())


def _biased_student(config, seed):
    """A student that sends every token to the experts of rank 0."""
    student = build_student(config, seed)
    with torch.no_grad():
        for layer in student.bert.encoder.layers():
            layer.ffn_gate.bias += torch.tensor([30.0, 30.0, -30.0, -30.0])
    return student


def _hide_a_ranks_tokens(batch, hidden) -> None:
    """Makes padding of what rank ``hidden`` of two gets, also where one process has both shares."""
    ranks = dist.get_world_size()
    if ranks == 1 or dist.get_rank() == hidden:
        for micro in batch.micro_batches:
            shares = micro.attention_mask.view(3 - ranks, -1, runs.LENGTH)
            shares[hidden if ranks == 1 else 0] = False


def _train(layout, biased, hidden):
    """Five steps: numbers and tokens per expert of each, and the weights on rank 0."""
    if biased:
        runs.build_student = _biased_student
    distiller = runs.make_distiller([runs.student_options((1, 4))], layout)
    rows, counts = [], []
    for step in range(5):
        batch = runs.make_batch(step, layout, dist.get_rank(), dist.get_world_size())
        if hidden is not None:
            _hide_a_ranks_tokens(batch, hidden)
        metrics = distiller.train_step(batch, step, stop_requested=False).students["s0"]
        rows.append([metrics.loss, metrics.gradient_norm])
        counts.append(metrics.tokens_per_expert)
    return rows, counts, distiller.students[0].whole_weights()


@pytest.mark.parametrize(
    ("stage", "biased", "hidden"),
    [
        (0, True, None),
        (1, True, None),
        (2, True, None),
        (0, False, 0),
        (1, False, 1),
        (2, False, 0),
    ],
)
def test_ranks_without_tokens_train_as_one_process_does(stage, biased, hidden) -> None:
    rows, counts, weights = run_distributed(_train, 2, Layout(stage, 2), biased, hidden)[0]
    wanted_rows, wanted_counts, wanted = run_distributed(_train, 1, Layout(0), biased, hidden)[0]
    assert torch.allclose(torch.tensor(rows), torch.tensor(wanted_rows), rtol=1e-5, atol=1e-5)
    assert counts == wanted_counts
    for name, value in wanted.items():
        if not name.endswith("key.bias"):  # its true gradient is zero, Adam amplifies the rounding
            assert (weights[name] - value).abs().max() < 1e-5, name
    if biased:
        assert all(block[2:] == [0, 0] for step in counts for block in step)

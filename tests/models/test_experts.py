"""Routing, splitting and grouped products against references written token by token."""

import math

import pytest
import torch
import torch.nn.functional as F

from minimoe_dist.models.experts import (
    ExpertLinear,
    LocalDispatcher,
    Router,
    expert_elements,
    grouped_linear,
    split_dense,
)
from minimoe_dist.models.noise import NoiseKeys, sample_keys

COUNTS = {
    "even": [4, 4, 4],
    "an empty expert": [7, 0, 5],
    "all to one": [0, 0, 9],
    "one row": [0, 1, 0],
    "no row": [0, 0, 0],
}


def problem(counts, dtype, inputs=16, outputs=24):
    """Rows, weight, bias and the upstream gradient."""
    generator = torch.Generator().manual_seed(0)
    shapes = [
        (sum(counts), inputs),
        (len(counts), outputs, inputs),
        (len(counts), outputs),
        (sum(counts), outputs),
    ]
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def token_by_token(rows, weight, bias, counts):
    owner = [expert for expert, count in enumerate(counts) for _ in range(count)]
    parts = [weight[e] @ row + bias[e] for e, row in zip(owner, rows, strict=True)]
    return torch.stack(parts) if parts else rows @ weight.sum(0).T + bias.sum(0)


def outputs_and_gradients(function, tensors, counts):
    *tensors, upstream = tensors
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    out = function(*leaves, counts)
    out.backward(upstream)
    return [out, *(leaf.grad for leaf in leaves)]


@pytest.mark.parametrize("counts", COUNTS.values(), ids=COUNTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_a_grouped_product_equals_one_product_per_token(counts, dtype) -> None:
    tensors = problem(counts, dtype)
    given = outputs_and_gradients(grouped_linear, tensors, torch.tensor(counts))
    wanted = outputs_and_gradients(token_by_token, [t.float() for t in tensors], counts)
    tolerance = 1e-5 if dtype == torch.float32 else 0.08
    for ours, reference in zip(given, wanted, strict=True):
        assert ours.dtype == dtype
        assert torch.allclose(ours.float(), reference, rtol=tolerance, atol=tolerance)


def test_an_expert_without_a_token_has_zero_gradients_not_none() -> None:
    _, _, weight, bias = outputs_and_gradients(
        grouped_linear, problem([7, 0, 5], torch.float32), torch.tensor([7, 0, 5])
    )
    for gradient in (weight, bias):
        assert torch.count_nonzero(gradient[1]) == 0
        assert torch.count_nonzero(gradient[0]) > 0


def test_an_expanded_upstream_gradient_is_taken() -> None:
    rows, weight, bias, upstream = problem([7, 0, 5], torch.float32)
    expanded = torch.ones(()).expand_as(upstream)
    given, wanted = (
        outputs_and_gradients(grouped_linear, [rows, weight, bias, u], torch.tensor([7, 0, 5]))
        for u in (expanded, torch.ones_like(upstream))
    )
    for ours, reference in zip(given, wanted, strict=True):
        assert torch.equal(ours, reference)


def test_the_local_dispatcher_sorts_by_expert_and_brings_back() -> None:
    expert = torch.tensor([2, 0, 2, 1, 0, 2])
    tokens = torch.arange(12.0).view(6, 2).requires_grad_()
    plan = LocalDispatcher().plan(expert, 4)
    rows = plan.to_experts(tokens)
    assert plan.tokens_per_expert.tolist() == [2, 1, 3, 0]
    assert torch.equal(rows, tokens[torch.tensor([1, 4, 3, 0, 2, 5])])
    assert torch.equal(plan.to_tokens(rows), tokens)


def test_gradients_follow_their_tokens_through_the_local_dispatcher() -> None:
    tokens = torch.zeros(6, 2, requires_grad=True)
    plan = LocalDispatcher().plan(torch.tensor([2, 0, 2, 1, 0, 2]), 4)
    upstream = torch.arange(12.0).view(6, 2)
    plan.to_experts(tokens).backward(upstream)
    assert torch.equal(tokens.grad, upstream[torch.tensor([3, 0, 4, 2, 1, 5])])


@pytest.fixture
def router():
    torch.manual_seed(0)
    return Router(16, 4, router_noise=0.1, site=3)


def test_the_router_takes_the_likeliest_expert_of_a_softmax(router) -> None:
    tokens = torch.randn(32, 16)
    route = router(tokens, None)
    wanted = (tokens @ router.weight.T + router.bias).softmax(-1)
    assert torch.equal(route.expert, wanted.argmax(-1))
    assert torch.allclose(route.probability, wanted.max(-1, keepdim=True).values)


def test_router_statistics_are_sums_over_its_tokens(router) -> None:
    tokens = torch.randn(32, 16)
    route = router(tokens, None)
    wanted = (tokens @ router.weight.T + router.bias).softmax(-1)
    assert torch.allclose(route.statistics.probability_sum, wanted.sum(0))
    counts = F.one_hot(wanted.argmax(-1), 4).sum(0).float()
    assert torch.equal(route.statistics.token_count, counts)


def test_only_probabilities_carry_a_gradient_to_the_router(router) -> None:
    route = router(torch.randn(32, 16), None)
    assert route.probability.requires_grad and route.statistics.probability_sum.requires_grad
    assert not route.statistics.token_count.requires_grad


def test_the_router_computes_in_float32_under_bfloat16_weights(router) -> None:
    tokens = torch.randn(32, 16)
    half = router(tokens.bfloat16(), None)
    rounded = Router(16, 4, 0.1, site=3)
    rounded.load_state_dict({k: v.bfloat16() for k, v in router.state_dict().items()})
    router.bfloat16()
    route = router(tokens.bfloat16(), None)
    wanted = rounded(tokens.bfloat16().float(), None)
    assert route.probability.dtype == half.probability.dtype == torch.float32
    assert torch.equal(route.probability, wanted.probability)
    assert torch.equal(route.statistics.probability_sum, wanted.statistics.probability_sum)


def test_router_noise_is_uniform_around_one_in_training_only(router) -> None:
    keys = NoiseKeys(sample_keys(1, torch.arange(64), 64), None)
    with torch.no_grad():
        router.weight.zero_()
        router.bias.zero_()
    flat, noisy = router(torch.zeros(4096, 16), None), router(torch.zeros(4096, 16), keys)
    assert torch.equal(flat.probability, torch.full((4096, 1), 0.25))
    # Logits 1 ± 0.1 bound the softmax; the bounds are nearly reached.
    highest = 1 / (1 + 3 * math.exp(-0.2))
    assert noisy.probability.min() > 0.25 and noisy.probability.max() < highest
    assert noisy.probability.max() > highest - 0.005


def test_no_router_noise_leaves_training_as_evaluation() -> None:
    router, tokens = Router(16, 4, router_noise=0.0, site=3), torch.randn(8, 16)
    keys = NoiseKeys(sample_keys(1, torch.arange(8), 1), None)
    assert torch.equal(router(tokens, keys).probability, router(tokens, None).probability)


def test_a_router_without_tokens_counts_zero(router) -> None:
    route = router(torch.empty(0, 16), None)
    assert route.expert.shape == (0,) and route.probability.shape == (0, 1)
    assert route.statistics.token_count.tolist() == [0.0] * 4


def test_experts_share_two_thirds_of_a_block_and_are_dealt_the_rest() -> None:
    # 24 elements in 2 experts of 12: 8 shared, then 8 + e, 10 + e, …
    shared = list(range(8))
    wanted = [[*shared, 8, 10, 12, 14], [*shared, 9, 11, 13, 15]]
    assert expert_elements(24, 2).tolist() == wanted


@pytest.mark.parametrize(("elements", "count"), [(48, 4), (12, 1), (40, 4), (7, 7), (98304, 64)])
def test_every_expert_gets_different_elements_of_the_block(elements, count) -> None:
    chosen = expert_elements(elements, count)
    per_expert = elements // count
    assert chosen.shape == (count, per_expert)
    assert all(len(set(row)) == per_expert for row in chosen.tolist())
    shared = 2 * per_expert // 3
    assert torch.equal(chosen[:, :shared], torch.arange(shared).expand(count, -1))
    own = chosen[:, shared:].flatten().tolist()
    assert len(set(own)) == len(own)


def test_elements_that_cannot_be_split_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot split 10 elements into 4 experts: use a block"):
        expert_elements(10, 4)


def test_heads_are_split_whole() -> None:
    weight = torch.arange(12.0)[:, None].expand(12, 5)  # 6 heads of 2 rows
    first, second = split_dense(weight, 2, axis=0, element_size=2)
    assert first[:, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert second[:, 0].tolist() == [0, 1, 2, 3, 6, 7]


def test_output_maps_are_split_by_input() -> None:
    layer = ExpertLinear(2, 3, 5, split_axis=1, element_size=1)
    weight = torch.arange(6.0).expand(5, 6)
    assert layer.split(weight)[:, 0].tolist() == [[0, 1, 2], [0, 1, 3]]


def test_first_maps_are_split_by_output() -> None:
    layer = ExpertLinear(2, 5, 3, split_axis=0, element_size=1)
    assert layer.split(torch.arange(6.0)[:, None].expand(6, 5))[:, :, 0].tolist() == [
        [0, 1, 2],
        [0, 1, 3],
    ]

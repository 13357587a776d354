"""Experts that are copies get clusters of tokens of their own."""

from typing import Any

import pytest
import torch
from torch import Tensor

from minimoe_dist.errors import UserError
from minimoe_dist.models.build import build_student
from minimoe_dist.models.clusters import batches_read, send_clusters
from minimoe_dist.models.experts import ExpertLinear, Route, Router
from tests.models.test_inheritance import text
from tests.models.test_starts import config_of, experts_of, trained

ROUTERS = ("attn_gate", "ffn_gate")


def copies(dense: Any, experts: tuple[int, int] = (1, 4), **changes: Any) -> Any:
    config = config_of(experts, relation_projections=False, **changes)
    return build_student(config, 0, start="copies", dense=dense, copy_noise=0.0).eval()


def short_text() -> list[Any]:
    return [batch.on_each(lambda values: values % 100) for batch in text(16)]


def routes(student: Any, batches: list[Any]) -> dict[str, list[Route]]:
    """What each router does with the tokens of a sample."""
    found: dict[str, list[Route]] = {}

    def keep(name: str) -> Any:
        return lambda module, read, route: found.setdefault(name, []).append(route)

    hooks = [
        module.register_forward_hook(keep(name))
        for name, module in student.named_modules()
        if isinstance(module, Router)
    ]
    with torch.no_grad():
        for batch in batches:
            student.bert(**batch.inputs())
    for hook in hooks:
        hook.remove()
    return found


def joined(found: list[Route]) -> tuple[Tensor, Tensor]:
    return torch.cat([one.expert for one in found]), torch.cat([one.probability for one in found])


@pytest.mark.parametrize("family", ["bert", "megatron-bert"])
@pytest.mark.parametrize("experts", [(1, 4), (2, 4)])
def test_every_expert_gets_an_equal_share(experts: tuple[int, int], family: str) -> None:
    student, batches = copies(trained(family), experts, family=family), short_text()
    told = send_clusters(student, batches)
    found = routes(student, batches)
    assert len(found) == 2 * sum(count > 1 for count in experts) == len(told)
    for (name, each), one in zip(found.items(), told, strict=True):
        count = experts[name.endswith("ffn_gate")]
        chosen, probability = joined(each)
        shares = torch.bincount(chosen, minlength=count) / len(chosen)
        assert shares.min() > 0.8 / count and shares.max() < 1.2 / count, name
        assert one.largest == pytest.approx(shares.max().item())
        assert one.probability == pytest.approx(probability.mean().item(), rel=1e-4)
        assert one.probability > 1.4 / count
        assert one.tokens == len(chosen)
        assert (one.block == "feed-forward", f".{one.layer - 1}." in name) == ("ffn" in name, True)


@pytest.mark.parametrize("gain", [1.0, 4.0])
def test_each_expert_is_as_large_as_the_plain_block_on_its_own_tokens(gain: float) -> None:
    dense, batches = trained(last_layer=True), short_text()
    with torch.no_grad():  # states that are far from unit variance
        for name, parameter in dense.named_parameters():
            if name.endswith("LayerNorm.weight"):
                parameter *= gain
    student = copies(dense, (2, 4))
    send_clusters(student, batches)
    for name, each in routes(student, batches).items():
        block = name.replace("attn_gate", "attention.output").replace("ffn_gate", "output")
        ours, plain = (one.get_submodule(f"{block}.dense") for one in (student, dense))
        chosen, probability = joined(each)
        for expert in range(ours.num_experts):
            mean = probability[chosen == expert].mean()
            for kind in ("weight", "bias"):
                kept = getattr(ours, kind)[expert] * mean
                assert torch.allclose(kept, getattr(plain, kind), rtol=1e-4, atol=1e-6)


def test_routers_and_second_maps_are_all_that_changes() -> None:
    dense, batches = trained(last_layer=True), short_text()
    student, before = copies(dense, (2, 4)), copies(dense, (2, 4))
    student.train()
    state = torch.get_rng_state()
    send_clusters(student, batches)
    assert torch.equal(torch.get_rng_state(), state) and student.training
    second = {name for name, map_ in experts_of(student).items() if map_.split_axis == 1}
    assert len(second) == 4
    for name, value in before.state_dict().items():
        may_change = any(router in name for router in ROUTERS)
        may_change |= name.rpartition(".")[0] in second
        assert torch.equal(value, student.state_dict()[name]) is not may_change, name


def test_it_is_a_function_of_its_seed() -> None:
    dense, batches = trained(), short_text()
    found = []
    for seed in (3, 3, 4):
        student = copies(dense)
        send_clusters(student, batches, seed)
        found.append(student.state_dict()["bert.encoder.layer.0.ffn_gate.weight"])
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_padding_is_in_no_cluster_where_it_is_routed_too() -> None:
    dense, batches = trained(), short_text()
    student, other = copies(dense, route_padding=True), copies(dense)
    tokens = sum(int(batch.attention_mask.sum()) for batch in batches)
    for each in (student, other):
        assert {one.tokens for one in send_clusters(each, batches)} == {tokens}
    assert student.config.route_padding
    for name, value in other.state_dict().items():
        assert torch.equal(value, student.state_dict()[name]), name


def test_an_expert_without_a_token_keeps_its_size() -> None:
    batches = short_text()[:1]
    batches[0].attention_mask[1:] = False
    batches[0].attention_mask[0] = torch.arange(20) < 3
    dense = trained()
    student, before = copies(dense, (1, 8)), copies(dense, (1, 8))
    send_clusters(student, batches)
    name = "bert.encoder.layer.0.output.dense"
    ours, theirs = (each.get_submodule(name) for each in (student, before))
    assert isinstance(ours, ExpertLinear) and isinstance(theirs, ExpertLinear)
    same = [torch.equal(a, b) for a, b in zip(ours.weight, theirs.weight, strict=True)]
    assert sum(same) >= 5
    assert ours.weight.isfinite().all()


def test_states_that_are_not_finite_are_named() -> None:
    student = copies(trained())
    with torch.no_grad():
        student.bert.encoder.layers()[1].attention.output.dense.bias[0] = float("nan")
    with pytest.raises(UserError, match="what its layer 2 reads is not finite"):
        send_clusters(student, short_text())


def test_it_asks_before_each_batch_whether_to_go_on() -> None:
    student, batches, asked = copies(trained(), (2, 4)), short_text(), []
    send_clusters(student, batches, go_on=lambda: asked.append(1))
    assert len(asked) == 4 * len(batches) == batches_read(student, len(batches))

"""The student's encoder: padding takes no part, noise follows samples, precision, empty batches."""

import pytest
import torch

from minimoe_dist.models.blocks import set_dropout
from minimoe_dist.models.build import build_student
from minimoe_dist.models.configuration import MiniMoeConfig
from minimoe_dist.models.packing import Packing

MIXTURES = [(1, 1), (1, 4), (4, 1), (4, 4)]
VOCABULARY = 50


def make_student(moe=(4, 4), **changes):
    options = {
        "vocab_size": VOCABULARY,
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "attention_experts": moe[0],
        "feedforward_experts": moe[1],
        "max_position_embeddings": 32,
        "num_relation_heads": 4,
        "relation_projections": moe != (1, 1),
        "initializer_range": 0.3,
    }
    return build_student(MiniMoeConfig(**{**options, **changes}), seed=0)


def make_batch(lengths, padded=None, first_sample=100):
    """Ids, mask, segments and sample ids; a sample's tokens do not depend on its neighbours."""
    padded = padded or max(lengths)
    ids = torch.zeros(len(lengths), padded, dtype=torch.long)
    mask = torch.zeros(len(lengths), padded, dtype=torch.bool)
    for row, length in enumerate(lengths):
        generator = torch.Generator().manual_seed(row)
        ids[row, :length] = torch.randint(1, VOCABULARY, (length,), generator=generator)
        mask[row, :length] = True
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "token_type_ids": (ids % 2) * mask,
        "sample_ids": torch.arange(first_sample, first_sample + len(lengths)),
    }


def at(batch, rows):
    return {name: value[rows] for name, value in batch.items()}


def stacked(output):
    return torch.stack(output.signals)


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize("moe", MIXTURES)
def test_a_samples_signals_do_not_depend_on_its_batch_or_its_padding(moe, training) -> None:
    student = make_student(moe).train(training)
    batch = make_batch([9, 4, 6], padded=16)
    together = stacked(student(**batch))
    for row, length in enumerate([9, 4, 6]):
        cut = {k: v[:, :length] if v.dim() == 2 else v for k, v in at(batch, [row]).items()}
        assert torch.allclose(stacked(student(**cut))[:, 0], together[:, row, :length], atol=1e-5)


@pytest.mark.parametrize("moe", MIXTURES)
def test_what_padding_holds_has_no_influence(moe) -> None:
    student, batch = make_student(moe).eval(), make_batch([9, 4], padded=16)
    before = stacked(student(**batch))
    batch["input_ids"][~batch["attention_mask"]] = 7
    batch["token_type_ids"][~batch["attention_mask"]] = 1
    assert torch.equal(stacked(student(**batch)), before)


def test_hidden_states_of_padding_are_zero() -> None:
    student, batch = make_student().eval(), make_batch([9, 4], padded=16)
    hidden = student.bert(**batch).last_hidden_state
    assert torch.count_nonzero(hidden[~batch["attention_mask"]]) == 0


def test_padding_is_not_routed() -> None:
    batch = make_batch([9, 4, 6], padded=16)
    routers = make_student()(**batch).routers
    assert [int(router.token_count.sum()) for router in routers] == [19] * 4
    for router in routers:
        assert router.probability_sum.sum().item() == pytest.approx(19, rel=1e-5)


def test_padding_is_routed_where_the_published_behaviour_is_asked_for() -> None:
    routers = make_student(route_padding=True)(**make_batch([9, 4, 6], padded=16)).routers
    assert [int(router.token_count.sum()) for router in routers] == [48] * 4


def test_routed_padding_changes_no_real_token() -> None:
    batch = make_batch([9, 4, 6], padded=16)
    skipped, routed = (make_student(route_padding=r).eval()(**batch) for r in (False, True))
    mask = batch["attention_mask"]
    assert torch.allclose(stacked(routed)[:, mask], stacked(skipped)[:, mask], atol=1e-5)


def test_routers_are_listed_layer_by_layer_attention_first() -> None:
    routers = make_student((2, 4))(**make_batch([5])).routers
    assert [len(router.token_count) for router in routers] == [2, 4, 2, 4]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize("route_padding", [False, True])
def test_a_sample_of_nothing_but_padding_makes_no_nan(route_padding, training, dtype) -> None:
    student = make_student(route_padding=route_padding).to(dtype).train(training)
    batch = make_batch([0, 5], padded=8)
    for rows in ([0, 1], [0]):
        student.zero_grad()
        signals = stacked(student(**at(batch, rows)))
        signals.float().square().sum().backward()
        assert signals.isfinite().all()
        for name, parameter in student.named_parameters():
            assert parameter.grad is not None and parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("training", [False, True], ids=["evaluation", "training"])
@pytest.mark.parametrize("moe", MIXTURES)
def test_a_batch_of_no_samples_gives_empty_signals(moe, training) -> None:
    student = make_student(moe).train(training)
    empty = at(make_batch([5]), [])
    output = student(**empty)
    assert stacked(output).shape == (3, 0, 5, 24)
    assert all(router.token_count.sum() == 0 for router in output.routers)
    stacked(output).sum().backward()


@pytest.mark.parametrize("moe", [(4, 4)])
def test_every_parameter_gets_a_gradient_even_where_its_expert_has_no_token(moe) -> None:
    student = make_student(moe)
    stacked(student(**make_batch([1]))).sum().backward()  # one token, 16 experts
    assert [n for n, p in student.named_parameters() if p.grad is None] == []


def test_bfloat16_students_route_in_float32() -> None:
    batch = make_batch([9, 4, 6])
    student = make_student().bfloat16()
    output = student(**batch)
    assert stacked(output).dtype == torch.bfloat16
    assert {router.probability_sum.dtype for router in output.routers} == {torch.float32}


def test_bfloat16_students_stay_near_float32_ones() -> None:
    batch, student = make_batch([9, 4, 6]), make_student((1, 1)).eval()
    wanted = stacked(student(**batch))
    half = stacked(student.bfloat16()(**batch)).float()
    assert (half - wanted).abs().max() < 0.05 * wanted.abs().max()


def test_training_depends_on_the_seed_and_the_samples() -> None:
    student, batch = make_student((1, 1)).train(), make_batch([9, 4])
    first = stacked(student(**batch, noise_seed=1))
    assert torch.equal(stacked(student(**batch, noise_seed=1)), first)
    assert not torch.equal(stacked(student(**batch, noise_seed=2)), first)
    others = {**batch, "sample_ids": batch["sample_ids"] + 1}
    assert not torch.equal(stacked(student(**others, noise_seed=1)), first)


def test_training_draws_nothing_from_torchs_generator() -> None:
    student, batch = make_student().train(), make_batch([9, 4])
    before = torch.get_rng_state()
    student(**batch)
    assert torch.equal(torch.get_rng_state(), before)


def test_without_sample_ids_training_draws_them_from_torchs_generator() -> None:
    student, batch = make_student((1, 1)).train(), make_batch([9, 4])
    del batch["sample_ids"]
    torch.manual_seed(3)
    first, second = stacked(student(**batch)), stacked(student(**batch))
    torch.manual_seed(3)
    assert torch.equal(stacked(student(**batch)), first)
    assert not torch.equal(second, first)


def test_masks_and_segments_may_be_left_out() -> None:
    student, batch = make_student().eval(), make_batch([9, 9])
    batch["token_type_ids"].zero_()
    assert torch.equal(stacked(student(batch["input_ids"])), stacked(student(**batch)))


def test_a_dense_student_stops_at_its_last_layers_projections() -> None:
    student, batch = make_student((1, 1)).eval(), make_batch([9, 4])
    hidden = []
    student.bert.encoder.layer[0].register_forward_hook(lambda m, i, o: hidden.append(o[0]))
    query = student(**batch).signals[0][batch["attention_mask"]]
    maps = student.bert.encoder.layer[1].attention.self
    assert torch.equal(query, maps.query(hidden[0]))


def test_the_chosen_experts_probability_scales_its_output() -> None:
    student = make_student((1, 4), num_hidden_layers=1).eval()
    layer, tokens = student.bert.encoder.layer[0], torch.randn(6, 24)
    wanted = []
    for token in tokens:
        probabilities = layer.ffn_gate(token[None], None)
        e, p = probabilities.expert.item(), probabilities.probability.item()
        first, second = layer.intermediate.dense, layer.output.dense
        inner = torch.nn.functional.gelu(first.weight[e] @ token + first.bias[e])
        wanted.append(
            layer.output.LayerNorm(p * (second.weight[e] @ inner + second.bias[e]) + token)
        )
    given, _ = layer._feed_forward(tokens, Packing(torch.ones(1, len(tokens)).bool(), False), None)
    assert torch.allclose(given, torch.stack(wanted), atol=1e-5)


@pytest.mark.parametrize("experts", [(1, 1), (2, 4)])
def test_dropout_is_set_in_all_places_and_not_in_the_configuration(experts) -> None:
    student = build_student(
        MiniMoeConfig(
            vocab_size=50, hidden_size=24, num_hidden_layers=2, num_attention_heads=4,
            intermediate_size=48, attention_experts=experts[0], feedforward_experts=experts[1],
            relation_projections=False, router_noise=0.0, max_position_embeddings=16,
        ),
        seed=1,
    ).train()  # fmt: skip
    ids = torch.arange(5, 15)[None]
    sample = {"sample_ids": torch.tensor([3]), "noise_seed": 1}
    quiet = student.eval().bert(ids).last_hidden_state
    noisy = student.train().bert(ids, **sample).last_hidden_state
    set_dropout(student, 0.0)
    assert not torch.allclose(noisy, quiet, atol=1e-3)
    assert torch.equal(student.train().bert(ids, **sample).last_hidden_state, quiet)
    assert student.config.hidden_dropout_prob == 0.1

"""Students that start from weights of their teacher's are nearer to it than random ones."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from minimoe_dist.data.batches import MicroBatch
from minimoe_dist.encoder_families import ENCODER_FAMILIES
from minimoe_dist.errors import UserError
from minimoe_dist.models.build import build_student, student_config
from minimoe_dist.models.experts import ExpertLinear
from minimoe_dist.models.inheritance import batches_read, inherit, runs_of_layers
from minimoe_dist.models.pretrained import base_of_students
from minimoe_dist.models.teacher import teacher_of
from minimoe_dist.models.teacher_places import TeacherPlaces
from tests.models.test_encoder_families import LAYERS, VOCABULARY, make_model

RELATION_HEADS = 4


def text(batches: int = 24, seed: int = 0) -> list[MicroBatch]:
    """Ids with padding, of words some of which are much more frequent than others."""
    generator = torch.Generator().manual_seed(seed)
    frequency = 1.0 / torch.arange(1, VOCABULARY - 4 + 1)
    found = []
    for _ in range(batches):
        ids = torch.multinomial(frequency, 8 * 20, replacement=True, generator=generator)
        mask = torch.arange(20) < torch.randint(8, 21, (8, 1), generator=generator)
        segments = (torch.arange(20) > 9).long() * mask
        ids = (ids.view(8, 20) + 4).masked_fill(~mask, 1)
        found.append(MicroBatch(ids, mask, segments, torch.arange(8)))
    return found


def fresh(teacher: Any, experts: tuple[int, int] = (1, 1), **sizes: int) -> Any:
    options = {"layers": 2, "hidden": 24, "heads": 2, **sizes}
    config = student_config(
        base_of_students(teacher.config),
        experts=experts,
        num_relation_heads=RELATION_HEADS,
        **options,
    )
    return build_student(config, seed=3)


def relations(signals: tuple[Tensor, ...]) -> list[Tensor]:
    """Log probabilities [B, R, S, S] of each signal's relations."""
    found = []
    for values in signals:
        heads = values.float().unflatten(-1, (RELATION_HEADS, -1)).transpose(1, 2)
        scores = heads @ heads.transpose(2, 3) / heads.shape[-1] ** 0.5
        found.append(scores.log_softmax(-1))
    return found


@torch.no_grad()
def loss(student: Any, teacher: Any) -> float:
    """The divergence of the student's relations from its teacher's, on other text."""
    teaching, total = teacher_of(copy.deepcopy(teacher)), 0.0
    student.eval()
    for batch in text(4, seed=1):
        full = torch.ones_like(batch.attention_mask)  # padding is text like any other here
        wanted = relations(teaching(batch.input_ids, full, batch.token_type_ids))
        got = relations(
            student(
                batch.input_ids, attention_mask=full, token_type_ids=batch.token_type_ids
            ).signals
        )
        for target, mine in zip(wanted, got, strict=True):
            total += float((target.exp() * (target - mine)).sum(-1).mean())
    return total


@pytest.mark.parametrize("experts", [(1, 1), (1, 3), (2, 3)])
@pytest.mark.parametrize("family", ENCODER_FAMILIES)
def test_a_student_begins_nearer_to_a_teacher_of_any_family(
    family: str, experts: tuple[int, int]
) -> None:
    teacher = make_model(family)
    student = fresh(teacher, experts)
    before = loss(student, teacher)
    found = inherit(student, teacher, text(), LAYERS)
    assert all(parameter.isfinite().all() for parameter in student.parameters())
    # Relative positions are the teacher's own, and its random weights lean on them heavily.
    assert loss(student, teacher) < 0.8 * before
    assert found.tokens == sum(int(batch.attention_mask.sum()) for batch in text())
    assert all(0.3 < layer.explained < 1.0 for layer in found.layers)


@pytest.mark.parametrize("family", ["gte", "nomic_bert", "distilbert"])
def test_segments_that_a_teacher_does_not_read_begin_alike(family: str) -> None:
    teacher = make_model(family)
    student = fresh(teacher)
    segments = student.bert.embeddings.token_type_embeddings.weight
    assert len(segments) == 2 and not torch.equal(*segments)
    inherit(student, teacher, text(), LAYERS)
    assert torch.equal(*segments) and segments[0].abs().sum() > 0


@pytest.mark.parametrize("experts", [(1, 1), (1, 2)])
@pytest.mark.parametrize("family", ["bert", "roberta", "megatron-bert"])
def test_with_room_for_everything_a_student_is_nearly_its_teacher(
    family: str, experts: tuple[int, int]
) -> None:
    teacher = make_model(family)
    # The relation loss's maps stand for the relation layer, which then is none of the layers.
    layers = LAYERS if experts == (1, 1) else LAYERS - 1
    student = fresh(teacher, experts, layers=layers, hidden=64, heads=8)
    before = loss(student, teacher)
    found = inherit(student, teacher, text(60), LAYERS)
    assert found.kept == pytest.approx(1.0)
    assert [(layer.first, layer.last) for layer in found.layers] == [
        (layer, layer) for layer in range(1, layers + 1)
    ]
    # What LayerNorm does to a post-LayerNorm student's states behind each block is not the
    # teacher's in other directions.
    nearness = 0.01 if family == "megatron-bert" else 0.25
    assert loss(student, teacher) < nearness * before
    assert all(layer.explained > (0.98 if nearness < 0.1 else 0.85) for layer in found.layers)


def test_experts_get_equal_shares_of_the_text() -> None:
    teacher = make_model("bert")
    student = fresh(teacher, (1, 3))
    inherit(student, teacher, text(), LAYERS)
    student.eval()
    counts = 0
    for batch in text():
        output = student(
            batch.input_ids,
            attention_mask=batch.attention_mask,
            token_type_ids=batch.token_type_ids,
        )
        counts = counts + torch.stack([each.token_count for each in output.routers])
    shares = counts / counts.sum(1, keepdim=True)
    assert shares.shape == (2, 3)
    assert shares.min() > 0.3 and shares.max() < 0.37


def test_experts_of_attention_are_alike_but_for_noise() -> None:
    teacher = make_model("bert")
    student = fresh(teacher, (2, 3))
    inherit(student, teacher, text(), LAYERS)
    layer = student.bert.encoder.layers()[0]
    assert isinstance(layer.attention.self.query, ExpertLinear)
    first, second = layer.attention.self.query.weight
    assert 0 < (first - second).std() < 0.1 * first.std()
    first, second, _ = layer.intermediate.dense.weight
    assert (first - second).std() > 0.1 * first.std()


def test_a_start_is_a_function_of_its_seed() -> None:
    teacher = make_model("bert")
    before = torch.get_rng_state()
    students = [fresh(teacher, (1, 3)) for _ in range(3)]
    for student, seed in zip(students, (5, 5, 6), strict=True):
        inherit(student, teacher, text(), LAYERS, seed)
    one, same, other = (torch.cat([p.flatten() for p in each.parameters()]) for each in students)
    assert torch.equal(one, same)
    assert not torch.allclose(one, other)
    assert torch.equal(before, torch.get_rng_state())


def test_nothing_else_of_either_model_changes() -> None:
    teacher = make_model("bert")
    student = fresh(teacher, (1, 3)).train()
    student.config.route_padding = True
    before = copy.deepcopy(teacher.state_dict())
    inherit(student, teacher, text(), LAYERS)
    assert student.training and student.config.route_padding
    for module in (*teacher.modules(), *student.modules()):
        assert not module._forward_hooks and not module._forward_pre_hooks
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())


@pytest.mark.parametrize("experts", [(1, 1), (1, 3)])
def test_the_size_of_a_stream_that_is_normalised_does_not_count(experts: tuple[int, int]) -> None:
    losses, shares = [], []
    for size in (1.0, 16.0):
        teacher = make_model("megatron-bert")
        with torch.no_grad():
            # Whatever is added to the stream is larger; every block reads it normalised.
            for table in teacher.embeddings.children():
                if isinstance(table, torch.nn.Embedding):
                    table.weight *= size
            for layer in teacher.encoder.layer:
                for linear in (layer.attention.output.dense, layer.output.dense):
                    linear.weight *= size
                    linear.bias *= size
        student = fresh(teacher, experts)
        found = inherit(student, teacher, text(), LAYERS)
        losses.append(loss(student, teacher))
        shares.append([layer.explained for layer in found.layers])
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert shares[1] == pytest.approx(shares[0], abs=0.02)


@pytest.mark.parametrize("family", ["bert", "megatron-bert"])
def test_words_are_as_large_as_the_teachers(family: str) -> None:
    # A masked-LM head is tied to them.
    teacher = make_model(family)
    student = fresh(teacher)
    inherit(student, teacher, text(), LAYERS)
    ours = student.bert.embeddings.word_embeddings.weight
    theirs = teacher.embeddings.word_embeddings.weight
    assert 0.5 < float((ours.std() / theirs.std()).detach()) < 2.0


@pytest.mark.parametrize(("hidden", "heads"), [(24, 2), (24, 6), (48, 4)])
def test_all_of_a_student_can_learn(hidden: int, heads: int) -> None:
    """With heads that are larger than the teacher's, more of them, or of both."""
    teacher = make_model("bert")  # 4 heads of 8
    student = fresh(teacher, (1, 3), hidden=hidden, heads=heads)
    inherit(student, teacher, text(), LAYERS)
    batch = text(1, seed=2)[0]
    student.eval()
    signals = student(
        batch.input_ids, attention_mask=batch.attention_mask, token_type_ids=batch.token_type_ids
    ).signals
    sum(values.square().sum() for values in signals).backward()
    for layer in student.bert.encoder.layers():
        query, key, value = (
            getattr(layer.attention.self, name) for name in ("query", "key", "value")
        )
        for linear in (key, value, layer.attention.output.dense):
            assert (linear.weight.grad.abs().sum(1) > 0).all()
        of_heads = query.weight.unflatten(0, (heads, -1))
        for one in range(heads):
            for other in range(one):
                assert not torch.equal(of_heads[one], of_heads[other])
    for linear in (student.relation.query, student.relation.key, student.relation.value):
        assert (linear.weight.grad.abs().sum(1) > 0).all()


def test_scores_that_are_divided_by_more_than_their_size_are_taken_over_so() -> None:
    assert TeacherPlaces(make_model("deberta-v2")).score_divisor == 3.0
    assert TeacherPlaces(make_model("bert")).score_divisor == 1.0


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 0.0])
def test_a_broken_teacher_gives_no_weights(value: float) -> None:
    teacher = make_model("bert")
    with torch.no_grad():
        if value:
            teacher.embeddings.word_embeddings.weight[7] = value
        else:
            teacher.embeddings.LayerNorm.weight.zero_()  # all tokens are the same
    with pytest.raises(UserError, match="its states are not finite, or the same for all tokens"):
        inherit(fresh(teacher), teacher, text(), LAYERS)


@pytest.mark.parametrize(
    ("layers", "relation_layer", "has_maps", "runs"),
    [
        (3, 6, False, [(1, 2), (3, 5), (6, 6)]),
        (3, 6, True, [(1, 2), (3, 3), (4, 5)]),
        (3, 12, False, [(1, 6), (7, 11), (12, 12)]),
        (3, 12, True, [(1, 4), (5, 7), (8, 11)]),
        (1, 6, False, [(1, 6)]),
        (1, 6, True, [(1, 5)]),
        (2, 1, False, [(1, 0), (1, 1)]),
        (4, 3, True, [(1, 0), (1, 1), (2, 2), (3, 2)]),
    ],
)
def test_each_layer_stands_for_a_run_of_the_teachers(
    layers: int, relation_layer: int, has_maps: bool, runs: list[tuple[int, int]]
) -> None:
    found = runs_of_layers(layers, relation_layer, has_maps)
    assert [(run.start, run.stop - 1) for run in found] == runs


@pytest.mark.parametrize("experts", [(1, 1), (1, 3)])
def test_more_layers_than_the_teacher_has_are_filled_too(experts: tuple[int, int]) -> None:
    teacher = make_model("bert")
    student = fresh(teacher, experts, layers=5, heads=6)
    before = loss(student, teacher)
    inherit(student, teacher, text(), LAYERS)
    assert loss(student, teacher) < 0.8 * before


def test_the_relations_of_a_middle_layer_are_taken_over() -> None:
    teacher = make_model("bert")
    student = fresh(teacher)
    cut = make_model("bert")
    cut.encoder.layer = cut.encoder.layer[:2]
    cut.config.num_hidden_layers = 2
    before = loss(student, cut)
    inherit(student, teacher, text(), 2)
    assert loss(student, cut) < 0.5 * before


def test_a_fit_asks_before_each_batch_whether_to_go_on() -> None:
    class EnoughError(Exception):
        pass

    teacher, asked = make_model("bert"), 0

    def go_on() -> None:
        nonlocal asked
        asked += 1
        if asked > 40:
            raise EnoughError

    student = fresh(teacher)
    with pytest.raises(EnoughError):
        inherit(student, teacher, text(), LAYERS, go_on=go_on)
    assert asked == 41 and student.training


@pytest.mark.parametrize("learns_last_states", [False, True])
@pytest.mark.parametrize("experts", [(1, 1), (2, 3)])
@pytest.mark.parametrize("family", ["bert", "megatron-bert"])
def test_how_many_batches_a_fit_reads_is_known_before(
    family: str, experts: tuple[int, int], learns_last_states: bool
) -> None:
    teacher, batches = make_model(family), text(6)
    student, asked = fresh(teacher, experts), 0
    if learns_last_states:
        student.state_map = torch.nn.Linear(student.config.hidden_size, teacher.config.hidden_size)

    def go_on() -> None:
        nonlocal asked
        asked += 1

    inherit(student, teacher, batches, LAYERS, go_on=go_on)
    assert asked == batches_read(student, len(batches))

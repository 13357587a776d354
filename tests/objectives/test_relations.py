"""The tiled relation loss against the plain formula, autograd's gradients and the golden files."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from minimoe_dist.models.noise import RelationDropout, sample_keys
from minimoe_dist.objectives import relations
from minimoe_dist.objectives.relations import relation_loss_sum

GOLDEN = Path(__file__).parents[1] / "data" / "golden"


def plain_loss_sum(student, teacher, mask, heads, epsilon=0.0, kept=None):
    """The formula as it stands in the paper: every relation matrix at once."""
    total = torch.zeros((), dtype=torch.float64)
    for x, (s, t) in enumerate(zip(student, teacher, strict=True)):
        log_student, log_teacher = (_log_relations(v, mask, heads) for v in (s, t.detach()))
        p_student, p_teacher = log_student.exp(), log_teacher.exp()
        if kept is not None:
            p_student = p_student * kept[x]
        if epsilon or kept is not None:
            log_student = (p_student + epsilon).log()
            log_teacher = (p_teacher + epsilon).log()
            p_teacher = p_teacher + epsilon
        rows = (p_teacher * (log_teacher - log_student)).masked_fill(~mask[:, None, None, :], 0.0)
        total = total + (rows.sum(-1) * mask[:, None, :]).sum()
    return total


def _log_relations(signal, mask, heads):
    split = signal.unflatten(-1, (heads, -1)).transpose(1, 2)
    scores = split @ split.transpose(-1, -2) / math.sqrt(split.shape[-1])
    return scores.masked_fill(~mask[:, None, None, :], -1e9).log_softmax(-1)


def draw(batch, length, width, dtype=torch.float32, seed=0, requires_grad=False):
    generator = torch.Generator().manual_seed(seed)
    signals = (torch.randn(batch, length, width, generator=generator) for _ in range(3))
    return tuple(x.to(dtype).requires_grad_(requires_grad) for x in signals)


def prefix_mask(lengths, longest):
    return torch.arange(longest) < torch.tensor(lengths)[:, None]


def gradients(loss: Tensor, signals):
    return torch.autograd.grad(loss, signals)


MASKS = {
    "full": prefix_mask([13, 13, 13], 13),
    "padded": prefix_mask([13, 5, 9], 13),
    "fully padded sample": prefix_mask([0, 13, 0], 13),
    "padding in front and in between": torch.rand(3, 13, generator=torch.manual_seed(3)) > 0.4,
}


@pytest.mark.parametrize("tile_elements", [1, 13 * 13 * 2, 10**6])
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS.keys())
def test_float32_mean_loss_is_the_plain_formulas(mask, tile_elements):
    student, teacher = draw(3, 13, 12), draw(3, 13, 20, seed=1)
    loss, rows = relation_loss_sum(student, teacher, mask, 4, tile_elements=tile_elements)
    expected = plain_loss_sum([x.double() for x in student], [x.double() for x in teacher], mask, 4)
    assert loss.item() / (3 * rows) == pytest.approx(expected.item() / (3 * rows), abs=1e-6)


@pytest.mark.parametrize("tile_elements", [1, 13 * 13 * 2, 10**6])
@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS.keys())
def test_float32_gradients_are_the_plain_formulas(mask, tile_elements):
    student, teacher = draw(3, 13, 12, requires_grad=True), draw(3, 13, 20, seed=1)
    loss, rows = relation_loss_sum(student, teacher, mask, 4, tile_elements=tile_elements)
    expected = plain_loss_sum(student, teacher, mask, 4)
    for ours, theirs in zip(
        gradients(loss / (3 * rows), student),
        gradients(expected / (3 * rows), student),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mask", MASKS.values(), ids=MASKS.keys())
@pytest.mark.parametrize("compat_seed", [False, True])
def test_float64_gradients_pass_gradcheck(mask, compat_seed):
    student = draw(3, 13, 4, torch.float64, requires_grad=True)
    teacher = draw(3, 13, 6, torch.float64, seed=1)

    def loss(*signals):
        return relation_loss_sum(
            signals, teacher, mask, 2, compat_seed=compat_seed, tile_elements=13 * 13 * 3
        )[0]

    assert torch.autograd.gradcheck(loss, student, fast_mode=True)


def test_rows_are_heads_times_positions_without_padding():
    mask = prefix_mask([13, 5, 0], 13)
    _, rows = relation_loss_sum(draw(3, 13, 12), draw(3, 13, 12), mask, 4)
    assert rows == 4 * 18


def test_loss_of_equal_sides_is_exactly_zero():
    signals = draw(2, 9, 12)
    loss, _ = relation_loss_sum(signals, signals, prefix_mask([9, 4], 9), 3)
    assert loss.item() == 0.0


def test_nothing_but_padding_gives_zero_loss_and_zero_gradients():
    student = draw(2, 5, 6, requires_grad=True)
    mask = torch.zeros(2, 5, dtype=torch.bool)
    loss, rows = relation_loss_sum(student, draw(2, 5, 6, seed=1), mask, 2)
    assert (loss.item(), rows) == (0.0, 0)
    assert all(not g.any() for g in gradients(loss, student))


@pytest.mark.parametrize("tile_elements", [1, 10**6])
def test_padding_positions_may_hold_nan(tile_elements):
    mask = prefix_mask([5, 7, 0], 7)
    student, teacher = draw(3, 7, 6), draw(3, 7, 6, seed=1)
    expected, _ = relation_loss_sum(student, teacher, mask, 2, tile_elements=tile_elements)
    spoilt = [
        tuple(x.masked_fill(~mask[..., None], math.nan).requires_grad_() for x in side)
        for side in (student, teacher)
    ]
    loss, _ = relation_loss_sum(*spoilt, mask, 2, tile_elements=tile_elements)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert all(g.isfinite().all() for g in gradients(loss, spoilt[0]))


def test_large_scores_neither_overflow_nor_lose_rows():
    student = tuple(30 * x for x in draw(1, 8, 4, torch.float64))
    teacher = tuple(30 * x for x in draw(1, 8, 4, torch.float64, seed=1))
    mask = torch.ones(1, 8, dtype=torch.bool)
    single = [tuple(x.float() for x in side) for side in (student, teacher)]
    loss, _ = relation_loss_sum(*single, mask, 1)
    expected = plain_loss_sum(student, teacher, mask, 1)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_bfloat16_signals_are_computed_in_float32():
    student = draw(2, 9, 12, torch.bfloat16, requires_grad=True)
    teacher = draw(2, 9, 24, torch.bfloat16, seed=1)
    mask = prefix_mask([9, 6], 9)
    loss, _ = relation_loss_sum(student, teacher, mask, 4)
    wide = tuple(x.detach().float().requires_grad_() for x in student)
    expected = plain_loss_sum(wide, [x.float() for x in teacher], mask, 4)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    for ours, theirs in zip(gradients(loss, student), gradients(expected, wide), strict=True):
        assert ours.dtype == torch.bfloat16
        torch.testing.assert_close(ours.float(), theirs, rtol=2**-7, atol=1e-6)


def test_autocast_does_not_lower_the_precision():
    student, teacher, mask = draw(2, 9, 12), draw(2, 9, 24, seed=1), prefix_mask([9, 6], 9)
    expected, _ = relation_loss_sum(student, teacher, mask, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = relation_loss_sum(student, teacher, mask, 4)
    assert torch.equal(loss, expected)


def test_strided_signals_give_the_loss_of_contiguous_ones():
    fused = torch.randn(2, 9, 36, generator=torch.manual_seed(0))
    teacher, mask = draw(2, 9, 24, seed=1), prefix_mask([9, 6], 9)
    views = fused.chunk(3, -1)
    loss, _ = relation_loss_sum(views, teacher, mask, 4)
    expected, _ = relation_loss_sum(tuple(v.contiguous() for v in views), teacher, mask, 4)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_the_teacher_gets_no_gradient():
    student, teacher = draw(1, 5, 6, requires_grad=True), draw(1, 5, 6, requires_grad=True)
    loss, _ = relation_loss_sum(student, teacher, torch.ones(1, 5, dtype=torch.bool), 2)
    assert torch.autograd.grad(loss, teacher, allow_unused=True) == (None, None, None)


def test_inference_mode_teacher_signals_are_accepted():
    student, mask = draw(1, 5, 6, requires_grad=True), torch.ones(1, 5, dtype=torch.bool)
    with torch.inference_mode():
        teacher = tuple(x * 2 for x in draw(1, 5, 6, seed=1))
    loss, _ = relation_loss_sum(student, teacher, mask, 2)
    assert all(g.isfinite().all() for g in gradients(loss, student))


def test_backward_twice_over_a_kept_graph_gives_the_same_gradient():
    student, mask = draw(1, 5, 6, requires_grad=True), torch.ones(1, 5, dtype=torch.bool)
    loss, _ = relation_loss_sum(student, draw(1, 5, 6, seed=1), mask, 2)
    first = torch.autograd.grad(loss, student, retain_graph=True)
    assert all(map(torch.equal, first, torch.autograd.grad(loss, student)))


def test_no_relation_tensor_outlives_the_forward_pass():
    student = draw(4, 64, 48, requires_grad=True)
    mask = torch.ones(4, 64, dtype=torch.bool)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda x: kept.append(x.numel()) or x, lambda x: x
    ):
        relation_loss_sum(student, draw(4, 64, 48, seed=1), mask, 12)
    assert max(kept) == student[0].numel()  # the relations would be 4 * 12 * 64 * 64


class LargestTensor(TorchDispatchMode):
    """Notes the elements of the largest tensor that any operation returns."""

    elements = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        if isinstance(result, Tensor):
            self.elements = max(self.elements, result.numel())
        return result


@pytest.mark.parametrize("batch", [4, 16])
def test_no_tensor_exceeds_the_tiles_whatever_the_batch(batch):
    student = draw(batch, 64, 8, requires_grad=True)
    mask = torch.ones(batch, 64, dtype=torch.bool)
    with LargestTensor() as largest:
        loss, _ = relation_loss_sum(
            student, draw(batch, 64, 8, seed=1), mask, 4, tile_elements=64 * 64
        )
        loss.backward()
    assert largest.elements == 3 * 64 * 64


def test_compat_seed_is_the_plain_formula_with_epsilons():
    student = draw(3, 13, 12, torch.float64, requires_grad=True)
    teacher, mask = draw(3, 13, 20, torch.float64, seed=1), MASKS["padded"]
    loss, _ = relation_loss_sum(student, teacher, mask, 4, compat_seed=True)
    expected = plain_loss_sum(student, teacher, mask, 4, epsilon=1e-7)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    for ours, theirs in zip(gradients(loss, student), gradients(expected, student), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


def drawn_dropout(samples, length, probability, first=0):
    """Of samples that are numbered from ``first`` on."""
    ids = torch.arange(first, first + samples)
    return RelationDropout(sample_keys(5, ids, length), probability)


def test_dropout_gradients_are_the_plain_formulas_for_the_same_drawn_mask():
    student = draw(2, 7, 6, torch.float64, requires_grad=True)
    teacher, mask = draw(2, 7, 6, torch.float64, seed=1), torch.ones(2, 7, dtype=torch.bool)
    dropout = drawn_dropout(2, 7, 0.3)
    loss, _ = relation_loss_sum(student, teacher, mask, 2, compat_seed=True, dropout=dropout)
    kept = [
        dropout.factors(x, slice(0, 2), slice(0, 2), 7).double().view(2, 2, 7, 7) for x in range(3)
    ]
    expected = plain_loss_sum(student, teacher, mask, 2, epsilon=1e-7, kept=kept)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    for ours, theirs in zip(gradients(loss, student), gradients(expected, student), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)


def test_dropout_does_not_depend_on_tiles_or_on_how_samples_are_dealt_out():
    student, teacher = draw(4, 9, 8), draw(4, 9, 8, seed=1)
    mask = torch.arange(9) < torch.tensor([9, 4, 7, 2])[:, None]

    def loss(first, last, length, tile_elements):
        rows, columns = slice(first, last), slice(0, length)
        signals = (tuple(x[rows, columns] for x in side) for side in (student, teacher))
        dropout = drawn_dropout(last - first, length, 0.3, first)
        options = {"compat_seed": True, "dropout": dropout, "tile_elements": tile_elements}
        return relation_loss_sum(*signals, mask[rows, columns], 4, **options)[0].item()

    whole = loss(0, 4, 9, 4 * 4 * 81)
    assert loss(0, 4, 9, 81) == pytest.approx(whole, rel=1e-6)
    assert loss(0, 2, 9, 200) + loss(2, 4, 7, 200) == pytest.approx(whole, rel=1e-6)


def golden_teacher_signals():
    """Query, key and value of the golden BERT's last layer."""
    from transformers import BertConfig, BertModel

    path = GOLDEN / "bert_minilm.safetensors"
    with safe_open(path, "pt") as file:
        config = json.loads(file.metadata()["meta"])["config"]
    tensors = load_file(path)
    model = BertModel(BertConfig(**config)).eval()
    prefix = "w.bert."
    weights = {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}
    model.load_state_dict(weights, strict=False)
    signals = {}
    attention = model.encoder.layer[-1].attention.self
    for name in ("query", "key", "value"):
        getattr(attention, name).register_forward_hook(
            lambda _module, _inputs, output, name=name: signals.__setitem__(name, output)
        )
    with torch.no_grad():
        model(**{k[len("in.") :]: v for k, v in tensors.items() if k.startswith("in.")})
    return tuple(signals[name] for name in ("query", "key", "value"))


@pytest.fixture(params=["1_4", "2_1", "4_4"])
def golden(request):
    """A golden MoE student: tensors, its relation maps, the compat loss, rows."""
    path = GOLDEN / f"moebert_minilm_{request.param}.safetensors"
    if not path.exists():
        pytest.skip(f"{path} is missing: golden numbers of the published implementation")
    tensors = load_file(path)
    maps = {
        f"self.{x}.{kind}": tensors[f"w.self.{x}.{kind}"].requires_grad_()
        for x in ("query", "key", "value")
        for kind in ("weight", "bias")
    }
    hidden = tensors["out.hidden"]
    student = tuple(
        torch.nn.functional.linear(hidden, maps[f"self.{x}.weight"], maps[f"self.{x}.bias"])
        for x in ("query", "key", "value")
    )
    loss, rows = relation_loss_sum(
        student, golden_teacher_signals(), tensors["in.attention_mask"], 8, compat_seed=True
    )
    return tensors, maps, loss, rows


def test_compat_seed_loss_is_the_golden_one_less_its_balance(golden):
    tensors, _, loss, rows = golden
    expected = tensors["out.loss"] - 0.01 * tensors["out.load_balance"]
    torch.testing.assert_close(loss.detach()[None] / (3 * rows), expected, rtol=1e-5, atol=2e-5)


def test_compat_seed_gradients_of_the_relation_maps_are_the_golden_ones(golden):
    tensors, maps, loss, rows = golden
    (loss / (3 * rows)).backward()
    for name, parameter in maps.items():
        expected = tensors[f"grad.{name}"]
        error = (parameter.grad - expected).norm() / expected.norm().clamp_min(1e-6)
        assert error < 1e-4, (name, error)


@pytest.mark.parametrize("holes", [False, True])
def test_what_kernels_are_given_is_the_same_loss(holes: bool) -> None:
    mask = prefix_mask([9, 4, 0, 13], 13)
    if holes:
        mask[0, 3] = mask[3, 0] = False
    student, teacher = draw(4, 13, 12), draw(4, 13, 24, seed=1)
    expected, _ = relation_loss_sum(student, teacher, mask, 4)
    given = relations._by_kernel(student, teacher, mask, 4)
    torch.testing.assert_close(given, expected, rtol=1e-5, atol=1e-5)

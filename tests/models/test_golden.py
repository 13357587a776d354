"""Agreement with numbers that the published implementation itself produced.

Each file holds a small random model's weights, its inputs and what it gave, in evaluation mode and
float32; the metadata's ``meta`` names its configuration. Relations are rows of real queries in the
order sample, head, position.
"""

import json
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from minimoe_dist.checkpoints.published import load_published
from minimoe_dist.models.experts import ExpertLinear
from minimoe_dist.objectives.balance import balance_loss
from minimoe_dist.objectives.relations import relation_loss_sum

FOLDER = Path(__file__).parent.parent / "data" / "golden"
MIXTURES = ["moebert_minilm_1_4", "moebert_minilm_4_4", "moebert_minilm_2_1"]
ALL = ["bert_minilm", *MIXTURES]
RELATION_HEADS = 8
SIGNALS = {"qq": 0, "kk": 1, "vv": 2}

pytestmark = pytest.mark.skipif(
    not FOLDER.is_dir(), reason=f"{FOLDER} is missing: it comes with the source, not the package"
)


@cache
def golden(name):
    """Tensors and configuration of a file."""
    with safe_open(FOLDER / f"{name}.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return tensors, json.loads(file.metadata()["meta"])["config"]


def part(name, prefix):
    tensors, _ = golden(name)
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


@pytest.fixture
def student_of(tmp_path):
    """Loads a file's model from a folder in the published layout."""

    def load(name):
        save_file(part(name, "w."), tmp_path / "model.safetensors")
        (tmp_path / "config.json").write_text(json.dumps(golden(name)[1]))
        return load_published(tmp_path)

    return load


def relations(signal, mask):
    """Softmax of scaled products per relation head, the rows of real queries."""
    heads = signal.unflatten(-1, (RELATION_HEADS, -1)).transpose(1, 2)
    scores = heads @ heads.transpose(-1, -2) / heads.shape[-1] ** 0.5
    scores = scores.masked_fill(~mask[:, None, None, :], -10000.0)
    return scores.softmax(-1)[mask[:, None, :].expand(-1, RELATION_HEADS, -1)]


def signal_of(rows, mask):
    """A signal whose relations are the ``rows`` of a golden file.

    A softmax hides a constant of each row. Scores x xᵀ are symmetric, which gives these constants
    back up to one for all; any root of the matrix will do for x.
    """
    samples, length = mask.shape
    heads = torch.zeros(samples, RELATION_HEADS, length, length, dtype=torch.float64)
    parts = iter(rows.double().log().split(mask.sum(1).repeat_interleave(RELATION_HEADS).tolist()))
    for sample, real in enumerate(mask.sum(1).tolist()):
        for head in range(RELATION_HEADS):
            logs = next(parts)[:, mask[sample]]
            scores = logs + (logs[0] - logs[:, 0])[:, None]
            heads[sample, head, :real, :real] = _root(scores * length**0.5)
    return heads.transpose(1, 2).flatten(2).float()


def _root(matrix):
    """x with x xᵀ = ``matrix`` + a constant that makes it positive."""
    for constant in (4.0 * step for step in range(200)):
        values, vectors = torch.linalg.eigh(matrix + constant)
        if values.min() > -1e-4:
            return vectors * values.clamp(min=0).sqrt()
    raise AssertionError("not the scores of any signal")


def teacher_signals(name, mask):
    return tuple(signal_of(golden(name)[0][f"teacher.out.{key}"], mask) for key in SIGNALS)


def loss_and_balances(student, name):
    """The published objective in evaluation mode: relations plus 0.01 times the balance."""
    inputs, mask = inputs_of(name)
    output = student(**inputs)
    total, rows = relation_loss_sum(
        output.signals, teacher_signals(name, mask), mask, RELATION_HEADS, compat_seed=True
    )
    plain = student.config.num_hidden_layers if student.config.feedforward_experts == 1 else 0
    balance = balance_loss(
        [router.probability_sum for router in output.routers],
        [router.token_count for router in output.routers],
        plain_blocks=plain,
    )
    return total / (3 * rows) + 0.01 * balance, balance


def close(ours, theirs):
    return torch.allclose(ours, theirs, rtol=1e-5, atol=2e-5)


def inputs_of(name):
    inputs = part(name, "in.")
    return inputs, inputs["attention_mask"].bool()


@pytest.mark.parametrize("name", ALL)
def test_hidden_states_agree(name, student_of) -> None:
    student, (inputs, mask) = student_of(name), inputs_of(name)
    hidden = student.bert(**inputs).last_hidden_state
    # The published mixtures route padding, so there it has hidden states that mean something.
    compared = mask if student.config.is_dense else torch.ones_like(mask)
    assert close(hidden[compared], golden(name)[0]["out.hidden"][compared])


@pytest.mark.parametrize("signal", SIGNALS)
@pytest.mark.parametrize("name", ALL)
def test_relations_agree(name, signal, student_of) -> None:
    inputs, mask = inputs_of(name)
    given = relations(student_of(name)(**inputs).signals[SIGNALS[signal]], mask)
    assert close(given, golden(name)[0][f"out.{signal}"])


@pytest.mark.parametrize("name", MIXTURES)
def test_each_blocks_balance_agrees(name, student_of) -> None:
    routers = student_of(name)(**inputs_of(name)[0]).routers
    # The files list plain blocks too, as the constant 1.
    wanted = [v for _, v in sorted(part(name, "out.balance.").items()) if len(v) > 1]
    assert len(routers) == len(wanted)
    for router, per_expert in zip(routers, wanted, strict=True):
        tokens = router.token_count.sum()
        mean, fraction = router.probability_sum / tokens, router.token_count / tokens
        assert close(len(per_expert) * mean * fraction, per_expert)


@pytest.mark.parametrize("name", MIXTURES)
def test_the_balance_agrees(name, student_of) -> None:
    _, balance = loss_and_balances(student_of(name), name)
    assert close(balance, golden(name)[0]["out.load_balance"].squeeze())


@pytest.mark.parametrize("name", MIXTURES)
def test_the_teachers_relations_are_met(name) -> None:
    # The test below compares with the published loss through these.
    mask = inputs_of(name)[1]
    for key, signal in zip(SIGNALS, teacher_signals(name, mask), strict=True):
        assert close(relations(signal, mask), golden(name)[0][f"teacher.out.{key}"])


@pytest.mark.parametrize("name", MIXTURES)
def test_the_loss_agrees(name, student_of) -> None:
    loss, _ = loss_and_balances(student_of(name), name)
    assert close(loss, golden(name)[0]["out.loss"].squeeze())


@pytest.mark.parametrize("name", MIXTURES)
def test_gradients_agree(name, student_of) -> None:
    student = student_of(name)
    loss_and_balances(student, name)[0].backward()
    given = {n.replace("relation.", "self."): p.grad for n, p in student.named_parameters()}
    wanted = part(name, "grad.")
    assert len(wanted) > 20
    for key, gradient in wanted.items():
        if key.endswith("layer.2.attention.self.key.bias"):
            continue  # its true gradient is zero: what is there is rounding
        difference = (given[key] - gradient).norm()
        assert difference <= 1e-4 * gradient.norm() + 1e-6, key


@pytest.mark.parametrize("name", MIXTURES)
def test_splitting_a_dense_block_into_experts_agrees_exactly(name, student_of) -> None:
    modules = dict(student_of(name).named_modules())
    split = 0
    for key, dense in part(name, "dense.").items():
        module_name, _, kind = key.rpartition(".")
        if "gate" in key:
            continue  # routers were drawn anew after the split
        module = modules[module_name]
        if isinstance(module, ExpertLinear):
            if kind == "bias":
                continue  # experts start without biases
            dense = module.split(dense)
            split += 1
        assert torch.equal(dense, golden(name)[0][f"w.{key}"]), key
    attention, feedforward = (int(n) > 1 for n in golden(name)[1]["moe"].split(","))
    assert split == 4 * attention + 2 * feedforward

"""Builds fresh students from a recipe's options, and starts their experts."""

from typing import Any, TypeVar, overload

import torch
from torch import Tensor, nn

from ..config.schema import Start
from .configuration import MiniMoeConfig, family_of
from .experts import ExpertLinear, Router
from .moebert import MiniMoeForRelations

Student = TypeVar("Student", bound=nn.Module)

# Fields of a BERT's configuration: those that its size does not change, and all that define it.
COMMON_FIELDS = (
    "vocab_size", "hidden_act", "hidden_dropout_prob", "attention_probs_dropout_prob",
    "max_position_embeddings", "type_vocab_size", "initializer_range", "layer_norm_eps",
    "pad_token_id",
)  # fmt: skip
PLAIN_FIELDS = (
    *COMMON_FIELDS, "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
    "num_relation_heads",
)  # fmt: skip
# Fields that a student takes over from the configuration it is derived from, usually the teacher's.
_INHERITED = (*COMMON_FIELDS, "bos_token_id", "eos_token_id")
# Fields in which a plain student has to equal the student whose experts become its copies.
_COPIED_SHAPE = (
    "family", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
    "intermediate_size", "max_position_embeddings", "type_vocab_size",
)  # fmt: skip
# Of the weights of a router whose experts are copies: as much as its noise in training.
_ROUTER_OF_COPIES = 0.25


def student_config(
    base: Any,
    *,
    layers: int,
    hidden: int,
    heads: int,
    experts: tuple[int, int],
    num_relation_heads: int,
    neurons: int | None = None,
    router_noise: float = 0.1,
    compat_seed: bool = False,
) -> MiniMoeConfig:
    """Makes the configuration of a student of ``layers`` × ``hidden``.

    Args:
        base: configuration of an encoder or a student: family, vocabulary, positions, dropout.
        layers: number of layers.
        hidden: hidden size.
        heads: attention heads of one expert.
        experts: x attention and y feed-forward experts; (1, 1) is a plain MiniLM student.
        num_relation_heads: R of the relation loss.
        neurons: feed-forward neurons of one expert; 4 times the hidden size where it is None.
        router_noise: ε of the noise on router logits in training.
        compat_seed: route and count padding, as the published implementation does.

    """
    assert hidden % num_relation_heads == 0, f"{num_relation_heads} relation heads of {hidden}"
    attention, feedforward = experts
    with_experts = experts != (1, 1)
    return MiniMoeConfig(
        **{name: getattr(base, name) for name in _INHERITED if hasattr(base, name)},
        family=family_of(base),
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * hidden if neurons is None else neurons,
        attention_experts=attention,
        feedforward_experts=feedforward,
        num_relation_heads=num_relation_heads,
        relation_projections=with_experts,
        router_noise=router_noise,
        route_padding=with_experts and compat_seed,
    )


@overload
def build_student(
    config: MiniMoeConfig,
    seed: int,
    *,
    start: Start = ...,
    dense: MiniMoeForRelations | None = ...,
    copy_noise: float = ...,
    fits_maps: bool = ...,
) -> MiniMoeForRelations: ...


@overload
def build_student(
    config: MiniMoeConfig,
    seed: int,
    *,
    start: Start = ...,
    dense: MiniMoeForRelations | None = ...,
    copy_noise: float = ...,
    fits_maps: bool = ...,
    model_class: type[Student],
) -> Student: ...


def build_student(
    config: MiniMoeConfig,
    seed: int,
    *,
    start: Start = "split",
    dense: MiniMoeForRelations | None = None,
    copy_noise: float = 0.01,
    fits_maps: bool = True,
    model_class: type[Any] = MiniMoeForRelations,
) -> Any:
    """Builds a student with fresh weights, which the arguments alone decide: equal on every rank.

    Args:
        config: the student's.
        seed: of its random weights.
        start: how experts begin. ``split``: as parts of a random block of E times their width, two
            thirds of each the same in all (the published way). ``random``: each drawn on its own.
            ``copies``: each a copy of a trained plain student's block, see :func:`copy_dense`.
        dense: the plain student of ``copies``.
        copy_noise: noise on each copy, relative to its weights' standard deviation.
        fits_maps: see :func:`copy_dense`.
        model_class: the student with what its objective needs on top.
    """
    assert (start == "copies") == (dense is not None), f"{start} with {type(dense).__name__}"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        student = model_class(config)
        if start == "random":
            _draw_experts(student, config.initializer_range)
        if dense is not None:
            copy_dense(dense, student, copy_noise, fits_maps)
        return student


def build_student_from(
    student: nn.Module, config: MiniMoeConfig, model_class: type[Student], seed: int
) -> Student:
    """Builds a student of another class with the weights of ``student``, fresh where it has none.

    Args:
        student: where weights come from.
        config: the new student's, of the same sizes.
        model_class: the new student's; parts of ``student`` that it does not have are dropped.
        seed: of the fresh parts, which are a function of it and of the configuration alone.
    """
    fresh = build_student(config, seed, model_class=model_class)
    weights = student.state_dict()
    fresh.load_state_dict(
        {name: weights.get(name, value) for name, value in fresh.state_dict().items()}
    )
    return fresh


@torch.no_grad()
def _draw_experts(student: nn.Module, standard_deviation: float) -> None:
    for module in student.modules():
        if isinstance(module, ExpertLinear):
            module.weight.normal_(std=standard_deviation)


@torch.no_grad()
def copy_dense(
    dense: MiniMoeForRelations, student: nn.Module, noise: float, fits_maps: bool = True
) -> None:
    """Gives a student with experts the weights of a trained plain one, in place.

    Every expert becomes a copy of the plain block plus noise, which lets experts part. A block's
    output is scaled by its expert's probability, so the second map of a block is divided by what
    that is on average: the blocks then begin at the size that they were trained for. Routers are
    fresh, with smaller weights: probabilities that differ from token to token would be noise.

    Relation projections, if there are any, read the final hidden states, while a plain student is
    trained by its last layer's queries, keys and values: they become copies of those maps. The rest
    of that layer has then learnt nothing, and its input must come through it as it is for the maps
    to fit. What its blocks add is small; its LayerNorms, where they are still as they began, are
    given the spread and the mean of that input (with pre-LayerNorm the one behind the layers
    becomes a copy of the one that stood before the maps). On a 6-layer student whose signals equal
    its teacher's, 1,4 copies begin at a relation loss of 0.17 so, at 0.87 without, a random student
    at 0.37.

    Args:
        dense: of the same layers, width, heads, neurons and vocabulary.
        student: any student class; its noise comes from PyTorch's generator.
        noise: relative to each weight's standard deviation.
        fits_maps: give relation projections those maps; of a plain student whose last layer has
            learnt all of its weights they would not fit what it gives, and stay fresh.
    """
    for name in _COPIED_SHAPE:
        assert getattr(dense.config, name) == getattr(student.config, name), name
    assert dense.config.is_dense
    source = dense.state_dict()
    if fits_maps and getattr(student, "relation", None) is not None:
        source |= _weights_for_signals(dense)
    experts = {
        f"{prefix}.{kind}": module
        for prefix, module in student.named_modules()
        if isinstance(module, ExpertLinear)
        for kind in ("weight", "bias")
    }
    for name, target in student.state_dict(keep_vars=True).items():
        if name not in source:
            continue  # routers, and what an objective puts on top
        value = source[name].to(target.dtype)
        if name in experts:
            value = _copy_to_experts(value, experts[name], noise)
        target.copy_(value)
    for module in student.modules():
        if isinstance(module, Router):
            module.weight.mul_(_ROUTER_OF_COPIES)
            module.bias.mul_(_ROUTER_OF_COPIES)


def _copy_to_experts(value: Tensor, module: ExpertLinear, noise: float) -> Tensor:
    copies = value.expand(module.num_experts, *value.shape).clone()
    if value.dim() == 2:
        copies += torch.randn(copies.shape) * (noise * value.std())
    # The map that is split by its inputs is a block's second one.
    if module.split_axis == 0:
        return copies
    return copies / probability_of_copies(module.num_experts)


def probability_of_copies(num_experts: int) -> float:
    """Returns the probability that :func:`copy_dense` expects of a chosen expert."""
    return fresh_probability(num_experts, _ROUTER_OF_COPIES)


def fresh_probability(num_experts: int, scale: float = 1.0) -> float:
    """Returns the chosen expert's mean probability over tokens, in a router as it begins.

    Hidden states that were normalised have H elements of about unit variance and weights in
    U(±1/√H) have variance 1/3H, so logits are about N(0, 1/3).

    Args:
        num_experts: of the router.
        scale: that its weights and biases were multiplied with.
    """
    generator = torch.Generator().manual_seed(0)
    logits = scale * torch.randn(100_000, num_experts, generator=generator) / 3**0.5
    return float(logits.softmax(-1).amax(-1).mean())


def _weights_for_signals(dense: MiniMoeForRelations) -> dict[str, Tensor]:
    """Returns weights by which projections of final hidden states give ``dense``'s signals."""
    if dense.relation is not None:
        return {}
    weights, config = dense.state_dict(), dense.config
    layer = f"bert.encoder.layer.{config.num_hidden_layers - 1}"
    replacements = {
        f"relation.{name}.{kind}": weights[f"{layer}.attention.self.{name}.{kind}"]
        for name in ("query", "key", "value")
        for kind in ("weight", "bias")
    }
    if config.normalizes_input:
        for kind in ("weight", "bias"):
            replacements[f"bert.encoder.ln.{kind}"] = weights[f"{layer}.attention.ln.{kind}"]
        return replacements
    norms = [f"{layer}.attention.output.LayerNorm", f"{layer}.output.LayerNorm"]
    if all((weights[f"{n}.weight"] == 1).all() and not weights[f"{n}.bias"].any() for n in norms):
        spread, mean = _spread_and_mean(weights, config.num_hidden_layers)
        for norm in norms:
            replacements[f"{norm}.weight"] = torch.full_like(weights[f"{norm}.weight"], spread)
            replacements[f"{norm}.bias"] = torch.full_like(weights[f"{norm}.bias"], mean)
    return replacements


def _spread_and_mean(weights: dict[str, Tensor], layers: int) -> tuple[float, float]:
    """Returns spread and mean of the H elements that the last layer reads, by their LayerNorm."""
    source = f"bert.encoder.layer.{layers - 2}.output" if layers > 1 else "bert.embeddings"
    scale, shift = (weights[f"{source}.LayerNorm.{kind}"] for kind in ("weight", "bias"))
    return float((scale.square().mean() + shift.var(correction=0)).sqrt()), float(shift.mean())

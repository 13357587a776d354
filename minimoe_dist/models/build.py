"""From a recipe's words to a fresh student."""

from typing import Any

import torch

from .configuration import MiniMoeConfig
from .moebert import MiniMoeForRelations

# What a student takes over from the configuration it is derived from, usually the teacher's.
_INHERITED = (
    "vocab_size",
    "hidden_act",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "max_position_embeddings",
    "type_vocab_size",
    "initializer_range",
    "layer_norm_eps",
    "pad_token_id",
)


def student_config(
    base: Any,
    *,
    layers: int,
    hidden: int,
    heads: int,
    experts: tuple[int, int],
    num_relation_heads: int,
    router_noise: float = 0.1,
    compat_seed: bool = False,
) -> MiniMoeConfig:
    """The configuration of a student of ``layers`` × ``hidden``.

    Args:
        base: a Hugging Face BERT configuration: vocabulary, positions, dropout.
        layers: number of layers.
        hidden: hidden size; feed-forward blocks have 4 times as many neurons.
        heads: attention heads of one expert.
        experts: x attention and y feed-forward experts; (1, 1) is a plain MiniLM student.
        num_relation_heads: R of the relation loss.
        router_noise: ε of the noise on router logits in training.
        compat_seed: route and count padding, as the published implementation does.

    Raises:
        ValueError: the sizes do not fit each other.
    """
    if hidden % num_relation_heads:
        raise ValueError(
            f"num_relation_heads {num_relation_heads} does not divide the student's hidden size "
            f"{hidden}: change one of them"
        )
    attention, feedforward = experts
    with_experts = experts != (1, 1)
    return MiniMoeConfig(
        **{name: getattr(base, name) for name in _INHERITED if hasattr(base, name)},
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * hidden,
        attention_experts=attention,
        feedforward_experts=feedforward,
        num_relation_heads=num_relation_heads,
        relation_projections=with_experts,
        router_noise=router_noise,
        route_padding=with_experts and compat_seed,
    )


def build_student(config: MiniMoeConfig, seed: int) -> MiniMoeForRelations:
    """A student with fresh weights: a function of (config, seed) alone, the same on every rank."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MiniMoeForRelations(config)

"""Makes encoders of our own from Hugging Face's, with the same weights."""

import torch
from transformers import PreTrainedModel

from ..encoder_families import ENCODER_FAMILIES
from .configuration import MiniMoeConfig
from .moebert import MiniMoeForRelations

_SHARED_FIELDS = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "max_position_embeddings",
    "type_vocab_size",
    "layer_norm_eps",
    "pad_token_id",
)


def as_student(model: PreTrainedModel, with_states: bool = False) -> MiniMoeForRelations:
    """Makes a plain student that gives the signals of a Hugging Face encoder's last layer.

    It takes over the encoder's weights, and joins those of queries, keys and values. It is for
    teaching, not for training.

    Args:
        model: what it is made of: one of Hugging Face's that `runs_as_students`.
        with_states: keep what stands behind these maps in the last layer, which else goes.
    """
    config = MiniMoeConfig(
        family=ENCODER_FAMILIES[model.config.model_type].student,
        attention_experts=1,
        feedforward_experts=1,
        num_relation_heads=1,
        relation_projections=False,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        **{name: getattr(model.config, name) for name in _SHARED_FIELDS},
    )
    with torch.device("meta"):
        student = MiniMoeForRelations(config)
    if not with_states:
        last = student.bert.encoder.layers()[-1]
        del last.attention.output, last.intermediate, last.output
    weights = {f"bert.{name}": value for name, value in model.state_dict().items()}
    student.load_state_dict({name: weights[name] for name in student.state_dict()}, assign=True)
    for layer in student.bert.encoder.layers():
        layer.attention.self.join()
    return student

"""Checks what options ask of models against the models' descriptions."""

from ..config import ConfigError
from ..model_description import ModelDescription


def check_relation_heads(option: str, heads: int, role: str, model: ModelDescription) -> None:
    """Refuses relation heads that a model's width cannot be cut into.

    Args:
        option: the option of the relation heads.
        heads: number of relation heads.
        role: the model's role, for messages.
        model: the model that is compared.

    Raises:
        ConfigError: they do not divide its hidden size.
    """
    if model.hidden_size % heads:
        raise ConfigError(
            f"{option}: {heads} does not divide the hidden size {model.hidden_size} of {role} "
            f"{model.path}; choose a divisor"
        )


def check_length(option: str, length: int, role: str, model: ModelDescription) -> None:
    """Refuses samples that are longer than a model's positions.

    Args:
        option: the option of the length.
        length: tokens of a sample.
        role: the model's role, for messages.
        model: the model that reads them.

    Raises:
        ConfigError: the samples are too long.
    """
    positions = model.longest_sequence
    if length > positions:
        raise ConfigError(
            f"{option}: {length} is longer than the {positions} positions of {role} {model.path}; "
            f"use at most {positions}"
        )


def check_same_vocabulary(option: str, model: ModelDescription, teacher: ModelDescription) -> None:
    """Refuses a model whose vocabulary is not its teacher's.

    Args:
        option: the option that names the model.
        model: the model that learns.
        teacher: the model that it learns from.

    Raises:
        ConfigError: the numbers of rows of their word embeddings differ.
    """
    if model.vocab_size != teacher.vocab_size:
        raise ConfigError(
            f"{option}: {model.path} has a vocabulary of {model.vocab_size}, the teacher "
            f"{teacher.path} of {teacher.vocab_size}; give two that share a tokenizer"
        )


def check_embedded(option: str, name: str, rows: int, teacher: ModelDescription) -> None:
    """Refuses a tokenizer with ids that the teacher has no embeddings for.

    Args:
        option: the option that names the tokenizer.
        name: the tokenizer.
        rows: one more than its highest id.
        teacher: the teacher, which reads them.

    Raises:
        ConfigError: there are too few embeddings.
    """
    if rows > teacher.vocab_size:
        raise ConfigError(
            f"{option}: {name} has {rows} tokens, but {teacher.path} embeds {teacher.vocab_size}; "
            "give the teacher's own tokenizer"
        )


def check_divided(option: str, ranks: int, model: ModelDescription, remedy: str) -> None:
    """Refuses a number of ranks that cannot share out each layer of a model.

    Args:
        option: the option of the ranks.
        ranks: number of ranks.
        model: the model to be shared out.
        remedy: what to give instead, for the message.

    Raises:
        ConfigError: they do not divide its heads or its feed-forward neurons.
    """
    for parts, count in (
        ("attention heads", model.num_attention_heads),
        ("feed-forward neurons", model.intermediate_size),
    ):
        if count % ranks:
            raise ConfigError(
                f"{option}: {ranks} does not divide the {count} {parts} of {model.path}; {remedy}"
            )

"""What options ask of models, held against the models' descriptions."""

from ..config import ConfigError
from ..model_description import ModelDescription


def check_relation_heads(option: str, heads: int, what: str, model: ModelDescription) -> None:
    """Refuses relation heads that a model's width cannot be cut into.

    Args:
        option: of the relation heads.
        heads: how many.
        what: the model is.
        model: that is compared.

    Raises:
        ConfigError: they do not divide its hidden size.
    """
    if model.hidden_size % heads:
        raise ConfigError(
            f"{option}: {heads} does not divide the hidden size {model.hidden_size} of {what} "
            f"{model.path}; choose a divisor"
        )


def check_length(option: str, length: int, what: str, model: ModelDescription) -> None:
    """Refuses samples that are longer than a model's positions.

    Args:
        option: of the length.
        length: tokens of a sample.
        what: the model is.
        model: that reads them.

    Raises:
        ConfigError: they are.
    """
    positions = model.longest_sequence
    if length > positions:
        raise ConfigError(
            f"{option}: {length} is longer than the {positions} positions of {what} {model.path}; "
            f"use at most {positions}"
        )


def check_same_vocabulary(option: str, model: ModelDescription, teacher: ModelDescription) -> None:
    """Refuses a model whose vocabulary is not its teacher's.

    Args:
        option: that names the model.
        model: that learns.
        teacher: that it learns from.

    Raises:
        ConfigError: the numbers of rows of their word embeddings differ.
    """
    if model.vocab_size != teacher.vocab_size:
        raise ConfigError(
            f"{option}: {model.path} has a vocabulary of {model.vocab_size}, the teacher "
            f"{teacher.path} of {teacher.vocab_size}; give two that share a tokenizer"
        )


def check_divided(option: str, ranks: int, model: ModelDescription, remedy: str) -> None:
    """Refuses a number of ranks that cannot share out each layer of a model.

    Args:
        option: of the ranks.
        ranks: how many.
        model: to be shared out.
        remedy: what to give instead.

    Raises:
        ConfigError: they do not divide its heads or its feed-forward neurons.
    """
    for what, count in (
        ("attention heads", model.num_attention_heads),
        ("feed-forward neurons", model.intermediate_size),
    ):
        if count % ranks:
            raise ConfigError(
                f"{option}: {ranks} does not divide the {count} {what} of {model.path}; {remedy}"
            )

"""Makes what ``minimoe-dist bench`` measures: models of a recipe's sizes, and random batches."""

from pathlib import Path

import torch.distributed as dist
from transformers import AutoConfig

from ..checkpoints.random_model import write_random_model
from ..config import RunConfig
from ..data.batches import MicroBatch
from ..planning.corpora import corpus_of
from ..planning.sizes import model_json
from ..preflight.bench import has_weights
from ..recipes.random_batches import make_micro_batches

Labels = list[tuple[str, str]]


def with_models(config: RunConfig, folder: Path) -> tuple[RunConfig, Labels]:
    """Replaces a teacher that is not on this machine by random weights; a collective.

    Random weights of the same sizes change no step's time.

    Args:
        config: the recipe.
        folder: folder for random weights; all nodes must see it.

    Returns:
        The recipe, and pairs of each model's role and description.
    """
    name, origin = config.teacher.model_name_or_path, "its own weights"
    if not has_weights(name):
        origin = "random weights of its sizes"
        if dist.get_rank() == 0:
            values = dict(model_json(name, "teacher.model_name_or_path", {}))
            write_random_model(AutoConfig.for_model(values.pop("model_type"), **values), folder)
        dist.barrier()
        teacher = config.teacher.model_copy(update={"model_name_or_path": str(folder)})
        config = config.model_copy(update={"teacher": teacher})
    labels = [("teacher", f"{name}, {origin}")]
    for student in config.students:
        start = student.initial_weights or "a random start"
        sizes = f"{student.layer}L;{student.hidden}H {student.moe}"
        labels.append((f"student {student.name}", f"{sizes}, from {start}"))
    return config, labels


def make_batches(
    config: RunConfig, filled: float | None, vocabulary: int
) -> tuple[list[MicroBatch], float, Labels]:
    """Returns a step of random ids, the share of positions without padding, and labels of both.

    Args:
        config: the recipe.
        filled: share of positions that are no padding; None for that of the corpus, if any.
        vocabulary: number of token ids.
    """
    training, data = config.training, config.data
    source = "as given"
    if filled is None:
        corpus = corpus_of(config, None)
        source = "no corpus is there" if corpus is None else "as in the corpus"
        filled = 1.0 if corpus is None else min(1.0, corpus.mean_length / data.max_length)
    samples, times = training.per_device_train_batch_size, training.num_grad_accum_steps
    batches = make_micro_batches(
        samples=samples,
        length=data.max_length,
        filled=filled,
        accumulation=times,
        vocabulary=vocabulary,
        masked=data.data_type.endswith("mlm"),
    )
    share = sum(float(batch.attention_mask.double().mean()) for batch in batches) / times
    labels = [
        ("batch of a rank", f"{samples} × {data.max_length} random ids, {times} times a step"),
        ("no padding", f"{share:.0%} of positions ({source})"),
        ("precision", config.parallel.precision),
    ]
    return batches, share, labels

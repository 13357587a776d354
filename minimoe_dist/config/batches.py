"""Divides a run's global batch among its ranks, however many there are."""

from .problems import ConfigError
from .run import RunConfig


def fit_to_ranks(config: RunConfig, world_size: int) -> RunConfig:
    """Returns the run with the micro-batches that its ``training.global_batch_size`` asks for.

    They are as large as ``training.per_device_train_batch_size`` allows, and no fewer than
    ``training.num_grad_accum_steps``. A run without a global batch stays as it is.

    Raises:
        ConfigError: the ranks do not divide the global batch.
    """
    training = config.training
    if training.global_batch_size is None:
        return config
    share, rest = divmod(training.global_batch_size, world_size)
    if rest or not share:
        raise ConfigError(
            f"training.global_batch_size: {training.global_batch_size} pairs cannot be divided "
            f"among {world_size} ranks; give a multiple of {world_size}"
        )
    most, fewest = training.per_device_train_batch_size, training.num_grad_accum_steps
    times = next(
        count for count in range(1, share + 1)
        if share % count == 0 and (count == share or (count >= fewest and share // count <= most))
    )  # fmt: skip
    update = {"per_device_train_batch_size": share // times, "num_grad_accum_steps": times}
    return config.model_copy(update={"training": training.model_copy(update=update)})

"""Finds the options of a resumed run whose change would change its training."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .flags import known_options

_MAX_SHOWN, _MAX_LENGTH = 8, 160  # changes in a message, and characters of one
# Where a run is, how it is spread and what it reports does not change what it learns; batch sizes
# count through the global batch, corpora through their contents.
_FREE = (
    "output_dir",
    "resume",
    "allow_changed_options",
    "parallel",
    "data.record_path_or_regex",
    "data.heldout_path_or_regex",
    "data.prefetch_steps",
    "teacher.model_name_or_path",
    "teacher.tokenizer_name_or_path",
    "teacher.cache_dir",
    "teacher.layout",
    "teacher.implementation",
    "teacher.parallel_size",
    "teacher.offload",
    "training.per_device_train_batch_size",
    "training.per_device_eval_batch_size",
    "training.num_grad_accum_steps",
    "training.global_batch_size",
    "training.log_interval",
    "training.save_interval",
    "training.eval_interval",
    "training.eval_sequences",
    "training.report_to",
    "training.keep_checkpoints",
    "training.ends_at_failed_save",
    "training.max_bad_steps",
    "training.health",
)


def changed_options(saved: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """Lists the differences that would change the training, as "path: saved -> current".

    Args:
        saved: options and facts of the run in the checkpoint, as JSON.
        current: the same of the run that is to be resumed.
    """
    before, after = _flat(saved), _flat(current)
    # Options that came later are in no older checkpoint, which was trained with their defaults.
    before |= {path: _default(path) for path in after.keys() - before.keys()}
    return [
        f"{path}: {before.get(path)} -> {after.get(path)}"
        for path in sorted(before.keys() | after.keys())
        if before.get(path) != after.get(path) and not _is_free(path)
    ]


def _default(path: str) -> Any:
    """Returns the default of an option of runs; None for what is none, or has no plain one."""
    keys: list[str | int] = ["*" if key.isdecimal() else key for key in path.split(".")]
    field = known_options().get(tuple(keys))
    default = None if field is None else field.get_default(call_default_factory=True)
    return default if isinstance(default, str | int | float) else None


def join_changes(changes: Sequence[str]) -> str:
    """Joins the first few changes, each cut to a maximal length, for a message of one line.

    Args:
        changes: result of :func:`changed_options`.
    """
    shown = [
        change if len(change) <= _MAX_LENGTH else f"{change[:_MAX_LENGTH]}…"
        for change in changes[:_MAX_SHOWN]
    ]
    more = len(changes) - len(shown)
    return "; ".join(shown) + (f"; and {more:,} more" if more else "")


def _is_free(path: str) -> bool:
    return any(path == free or path.startswith(free + ".") for free in _FREE)


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping):
        items = [(f"{path}.{key}" if path else str(key), item) for key, item in value.items()]
    elif isinstance(value, list):
        items = [(f"{path}.{index}", item) for index, item in enumerate(value)]
    else:
        return {path: value}
    return {
        name: leaf for item_path, item in items for name, leaf in _flat(item, item_path).items()
    }


def refusal_of(changes: Sequence[str], checkpoint: Path, may_be_allowed: bool) -> str:
    """Words the refusal to go on from a checkpoint under other options.

    Args:
        changes: result of :func:`changed_options`.
        checkpoint: that the run would go on from.
        may_be_allowed: whether an option allows it.
    """
    remedy = "give the former ones, or --resume never or another output_dir to start anew"
    if may_be_allowed:
        remedy = f"give --allow_changed_options to go on with the new ones, or {remedy}"
    return f"{checkpoint}: the run's options changed since ({join_changes(changes)}): {remedy}"

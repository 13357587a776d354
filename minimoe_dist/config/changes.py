"""Which options of a resumed run differ from the saved ones in a way that changes the training."""

from collections.abc import Mapping, Sequence
from typing import Any

_SHOWN, _LONGEST = 8, 160  # changes in a message, and characters of one
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
    "teacher.layout",
    "teacher.parallel_size",
    "teacher.offload",
    "training.per_device_train_batch_size",
    "training.per_device_eval_batch_size",
    "training.num_grad_accum_steps",
    "training.log_interval",
    "training.save_interval",
    "training.eval_interval",
    "training.eval_sequences",
    "training.keep_checkpoints",
    "training.max_bad_steps",
)


def changed_options(saved: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """One "path: saved -> current" a difference that would change the training.

    Args:
        saved: what the checkpoint says: a run's options and facts about it, as JSON.
        current: the same of the run that wants to go on.
    """
    before, after = _flat(saved), _flat(current)
    return [
        f"{path}: {before.get(path)} -> {after.get(path)}"
        for path in sorted(before.keys() | after.keys())
        if before.get(path) != after.get(path) and not _is_free(path)
    ]


def in_words(changes: Sequence[str]) -> str:
    """Changes for a message of one line: the first few, none of them long.

    Args:
        changes: of :func:`changed_options`.
    """
    shown = [one if len(one) <= _LONGEST else f"{one[:_LONGEST]}…" for one in changes[:_SHOWN]]
    more = len(changes) - len(shown)
    return "; ".join(shown) + (f"; and {more:,} more" if more else "")


def _is_free(path: str) -> bool:
    return any(path == free or path.startswith(free + ".") for free in _FREE)


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, Mapping):
        items = [(f"{path}.{key}" if path else str(key), one) for key, one in value.items()]
    elif isinstance(value, list):
        items = [(f"{path}.{index}", one) for index, one in enumerate(value)]
    else:
        return {path: value}
    return {name: leaf for at, one in items for name, leaf in _flat(one, at).items()}

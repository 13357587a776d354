"""Checks DeepSpeed's JSON, for ZeRO and precision only, and fills in its "auto" values.

DeepSpeed itself takes misspelt keys and contradictions silently. The keys are listed here by hand,
because DeepSpeed's own list cannot be read without importing torch.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..foreign import UnreadableError, parse_json, read_text, shown
from .problems import ConfigError, nearest

if TYPE_CHECKING:
    from .run import RunConfig

AUTO = "auto"
_NUMBER = (int, float)
_DTYPES = ("fp32", "bf16", "fp16")
# What a key takes: types, a tuple of allowed values, or a nested mapping. "auto" always fits.
_OFFLOAD = {
    "device": ("none", "cpu"),
    "pin_memory": bool,
    "buffer_count": int,
    "buffer_size": int,
}
_ZERO = {
    "stage": (0, 1, 2, 3),
    "contiguous_gradients": bool,
    "reduce_scatter": bool,
    "reduce_bucket_size": int,
    "use_multi_rank_bucket_allreduce": bool,
    "allgather_partitions": bool,
    "allgather_bucket_size": int,
    "overlap_comm": bool,
    "round_robin_gradients": bool,
    "offload_optimizer": {**_OFFLOAD, "ratio": _NUMBER},
    "offload_param": {**_OFFLOAD, "max_in_cpu": int},
    "sub_group_size": int,
    "stage3_prefetch_bucket_size": int,
    "stage3_param_persistence_threshold": int,
    "stage3_model_persistence_threshold": int,
    "stage3_max_live_parameters": int,
    "stage3_max_reuse_distance": int,
    "stage3_gather_16bit_weights_on_model_save": bool,
    "memory_efficient_linear": bool,
}
_BF16 = {"enabled": bool, "check_grad_overflow": bool}
_FP16 = {
    "enabled": bool,
    "loss_scale": _NUMBER,
    "initial_scale_power": int,
    "loss_scale_window": int,
    "hysteresis": int,
    "consecutive_hysteresis": bool,
    "min_loss_scale": _NUMBER,
}
_KEYS: dict[str, Any] = {
    "train_batch_size": int,
    "train_micro_batch_size_per_gpu": int,
    "gradient_accumulation_steps": int,
    "gradient_clipping": _NUMBER,
    "zero_optimization": _ZERO,
    "bf16": _BF16,
    "fp16": _FP16,
    "communication_data_type": _DTYPES,
    "data_types": {"grad_accum_dtype": _DTYPES},
    "steps_per_print": int,
    "wall_clock_breakdown": bool,
    "zero_allow_untested_optimizer": bool,
    "zero_force_ds_cpu_optimizer": bool,
}
# Keys that DeepSpeed knows and that have their home elsewhere.
_ELSEWHERE = {
    "optimizer": "the optimizer is set by training.learning_rate, weight_decay, adam_*",
    "scheduler": "the schedule is set by training.lr_scheduler_type and warmup_proportion",
    "tensorboard": "TensorBoard is always written to output_dir",
}
# Values without which training with experts or several engines is silently wrong.
_FIXED = {
    "contiguous_gradients": (True, "ZeRO-1 is silently wrong without"),
    "reduce_scatter": (True, "experts are reduced wrongly without"),
    "memory_efficient_linear": (False, "it would replace the linear layers of the whole process"),
}
_BUCKET = 50_000_000  # elements; the default of 5e8 would take 2 GB for students of 30 M parameters


def check_deepspeed_json(
    source: str | Path | Mapping[str, Any], config: "RunConfig | None" = None
) -> dict[str, Any]:
    """Reads a DeepSpeed JSON and refuses what is misspelt, misplaced or contradicts the run.

    Args:
        source: path of the JSON, or its content.
        config: the run whose batch, clipping, stage and precision it must not contradict.

    Returns:
        The content; "auto" values are still in it.

    Raises:
        ConfigError: one line with file, key, value and remedy.
    """
    if isinstance(source, Mapping):
        label, settings = "DeepSpeed settings", dict(source)
    else:
        label, settings = str(source), _read(str(source))
    _check_keys(settings, _KEYS, "", label)
    _check_together(settings, label)
    if config is not None:
        _check_against_run(settings, config, label)
    return settings


def find_deepspeed_json(path: str, config_path: str | None) -> str:
    """Returns the JSON's path: from the working directory, else from the recipe's folder.

    Raises:
        ConfigError: it is in neither.
    """
    candidates = [Path(path).expanduser()]
    if config_path is not None:
        candidates.append(Path(config_path).parent / path)
    for candidate in candidates:
        if candidate.is_file():
            return os.path.normpath(candidate)
    tried = " and ".join(str(candidate.parent) for candidate in candidates)
    raise ConfigError(f"parallel.deepspeed: no file {path!r} (looked in {tried}); correct the path")


def chosen_stage(settings: Mapping[str, Any]) -> int | None:
    """Returns the ZeRO stage that a JSON fixes; None where it leaves it to the run."""
    stage = settings.get("zero_optimization", {}).get("stage", AUTO)
    return None if stage == AUTO else int(stage)


def chosen_precision(settings: Mapping[str, Any]) -> str | None:
    """Returns the precision that a JSON fixes; None where it leaves it to the run."""
    enabled = {name: settings.get(name, {}).get("enabled", AUTO) for name in ("bf16", "fp16")}
    for name, value in enabled.items():
        if value is True:
            return name
    return "fp32" if set(enabled.values()) == {False} else None


def deepspeed_settings(config: "RunConfig", world_size: int) -> dict[str, Any]:
    """Builds the dictionary for ``deepspeed.initialize``, without "auto" values.

    Args:
        config: the run; its ``parallel.deepspeed``, if any, is read again.
        world_size: number of ranks, for the global batch size.

    Raises:
        ConfigError: the JSON is wrong or contradicts the run.
    """
    assert config.parallel.precision != "auto", "resolved where the device is known"
    settings: dict[str, Any] = {}
    if config.parallel.deepspeed is not None:
        settings = check_deepspeed_json(config.parallel.deepspeed, config)
    training = config.training
    total = config.global_batch_size(world_size)
    batch_size = settings.get("train_batch_size", AUTO)
    if batch_size not in (AUTO, total):
        raise ConfigError(
            f"{config.parallel.deepspeed}: train_batch_size {batch_size} is not the run's {total} "
            f'({world_size} ranks); use "auto"'
        )
    zero = _without_auto(settings.get("zero_optimization", {}))
    zero["stage"] = config.parallel.zero_stage
    for name, (value, _) in _FIXED.items():
        zero.setdefault(name, value)
    zero.setdefault("reduce_bucket_size", _BUCKET)
    zero.setdefault("allgather_bucket_size", _BUCKET)
    filled = _without_auto(settings)
    filled.setdefault("steps_per_print", 1_000_000_000)  # our own metrics report
    # Our optimizer is torch's AdamW, also where its state is offloaded.
    filled.setdefault("zero_allow_untested_optimizer", True)
    filled.setdefault("zero_force_ds_cpu_optimizer", False)
    filled |= {
        "train_batch_size": total,
        "train_micro_batch_size_per_gpu": training.per_device_train_batch_size,
        "gradient_accumulation_steps": training.num_grad_accum_steps,
        "gradient_clipping": 0.0,  # the engine decides who clips
        "zero_optimization": zero,
    }
    for name in ("bf16", "fp16"):
        enabled = config.parallel.precision == name
        filled[name] = {**_without_auto(settings.get(name, {})), "enabled": enabled}
    return filled


def task_settings(
    zero_stage: int, precision: str, micro_batch_size: int, world_size: int
) -> dict[str, Any]:
    """Builds it for fine-tuning, which has no JSON of the user's and no accumulation."""
    zero: dict[str, Any] = {name: value for name, (value, _) in _FIXED.items()}
    return {
        "train_batch_size": micro_batch_size * world_size,
        "train_micro_batch_size_per_gpu": micro_batch_size,
        "gradient_accumulation_steps": 1,
        "zero_optimization": zero
        | {"stage": zero_stage, "reduce_bucket_size": _BUCKET, "allgather_bucket_size": _BUCKET},
        "steps_per_print": 1_000_000_000,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": precision == "bf16"},
        "fp16": {"enabled": False},
    }


def _read(path: str) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        content = dict(pairs)
        if len(content) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise ConfigError(f"{path}: {twice} is given twice; keep one")
        return content

    try:
        settings = parse_json(read_text(path), unique)
    except UnreadableError as error:
        line = f":{error.line}" if error.line else ""
        raise ConfigError(f"{path}{line}: {error}; correct the JSON") from None
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; give a DeepSpeed JSON") from None
    if not isinstance(settings, dict):
        raise ConfigError(f"{path}: must be a JSON object, not {shown(settings)}")
    return settings


def _check_keys(
    settings: Mapping[str, Any], schema: Mapping[str, Any], prefix: str, label: str
) -> None:
    for key, value in settings.items():
        name = f"{prefix}{key}"
        if key not in schema:
            if not prefix and key in _ELSEWHERE:
                raise ConfigError(f"{label}: {name} has no place here; {_ELSEWHERE[key]}")
            suggestion = nearest(key, schema)
            hint = (
                f"did you mean {prefix}{suggestion}?"
                if suggestion
                else f"there are {', '.join(schema)}"
            )
            raise ConfigError(f"{label}: {name} is not a key for ZeRO or precision; {hint}")
        expected = schema[key]
        if isinstance(expected, Mapping):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{label}: {name} must be an object, not {shown(value)}")
            _check_keys(value, expected, f"{name}.", label)
        elif value != AUTO:
            _check_value(name, value, expected, label)


def _check_value(name: str, value: Any, expected: Any, label: str) -> None:
    is_choice = isinstance(expected, tuple) and not isinstance(expected[0], type)
    if is_choice:
        fits = value in expected and not isinstance(value, bool)
        description = f"one of {', '.join(map(str, expected))}"
    else:
        fits = isinstance(value, expected) and isinstance(value, bool) == (expected is bool)
        if expected is int and isinstance(value, float):
            fits = value.is_integer()  # DeepSpeed's own examples write bucket sizes as 5e8
        description = {bool: "true or false", int: "a whole number"}.get(expected, "a number")
    if not fits:
        raise ConfigError(f'{label}: {name} must be {description} or "auto", not {shown(value)}')


def _check_together(settings: Mapping[str, Any], label: str) -> None:
    zero = settings.get("zero_optimization", {})
    for name, (value, reason) in _FIXED.items():
        chosen = zero.get(name, AUTO)
        if chosen not in (AUTO, value):
            remedy = f"{reason}; use {str(value).lower()}, or leave it out"
            raise ConfigError(f"{label}: zero_optimization.{name} {str(chosen).lower()}: {remedy}")
    if settings.get("bf16", {}).get("check_grad_overflow") is False:
        remedy = "a loss that is no number would spoil the weights; use true, or leave it out"
        raise ConfigError(f"{label}: bf16.check_grad_overflow false: {remedy}")
    if all(settings.get(name, {}).get("enabled") is True for name in ("bf16", "fp16")):
        raise ConfigError(f"{label}: bf16 and fp16 are both enabled; enable one")
    stage = chosen_stage(settings)
    offloaded = {
        name: zero.get(name, {}).get("device", "none") not in ("none", AUTO)
        for name in ("offload_optimizer", "offload_param")
    }
    if offloaded["offload_param"] and stage not in (3, None):
        raise ConfigError(f"{label}: offload_param needs stage 3, not {stage}; drop it")
    if offloaded["offload_optimizer"] and stage == 0:
        raise ConfigError(f"{label}: offload_optimizer needs a stage of at least 1, not 0; drop it")


def _check_against_run(settings: Mapping[str, Any], config: "RunConfig", label: str) -> None:
    training = config.training
    pairs = {
        "train_micro_batch_size_per_gpu": training.per_device_train_batch_size,
        "gradient_accumulation_steps": training.num_grad_accum_steps,
        "gradient_clipping": training.max_grad_norm,
    }
    homes = ("per_device_train_batch_size", "num_grad_accum_steps", "max_grad_norm")
    for (name, value), home in zip(pairs.items(), homes, strict=True):
        setting = settings.get(name, AUTO)
        if setting not in (AUTO, value):
            raise ConfigError(
                f"{label}: {name} {setting} contradicts training.{home} {value}; "
                'use "auto" and set it there'
            )
    setting, one_rank = settings.get("train_batch_size", AUTO), config.global_batch_size(1)
    if setting != AUTO and setting % one_rank:
        raise ConfigError(
            f"{label}: train_batch_size {setting} is no multiple of the run's {one_rank} a rank; "
            'use "auto"'
        )
    chosen = {"zero_stage": chosen_stage(settings), "precision": chosen_precision(settings)}
    for name, fixed in chosen.items():
        run_value = getattr(config.parallel, name)
        if fixed not in (None, run_value):
            raise ConfigError(
                f"{label}: has {name} {fixed}, but parallel.{name} is {run_value}; drop one"
            )
    disabled = settings.get(config.parallel.precision, {}).get("enabled") is False
    if disabled:
        name = config.parallel.precision
        raise ConfigError(f"{label}: {name}.enabled false contradicts parallel.precision {name}")


def _without_auto(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Copies settings without "auto", for which DeepSpeed's defaults or the run's values stand."""
    return {
        key: _without_auto(value) if isinstance(value, Mapping) else value
        for key, value in settings.items()
        if value != AUTO
    }

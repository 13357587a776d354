"""Typed options of a run: one home for every one of them, refused by name when they are wrong.

Defaults < recipe (YAML) < flags and ``key.path=value`` in the order given. `schema` declares the
options, `checks` holds them against each other, which `run` puts together, `flags` derives the
command line from them, `loading` merges, `stages` reads chains, `command_line` turns the words of
any command into its options (`commands`), `problems` words the errors, `deepspeed_json` holds ZeRO
and precision. Nothing here imports torch or deepspeed.
"""

from .deepspeed_json import check_deepspeed_json, deepspeed_settings
from .loading import load_run_config
from .problems import ConfigError
from .run import RunConfig
from .schema import (
    CorpusPath,
    DataConfig,
    ObjectiveConfig,
    ParallelConfig,
    StudentConfig,
    TeacherConfig,
    TrainingConfig,
)
from .stages import load_stages

__all__ = [
    "ConfigError",
    "CorpusPath",
    "DataConfig",
    "ObjectiveConfig",
    "ParallelConfig",
    "RunConfig",
    "StudentConfig",
    "TeacherConfig",
    "TrainingConfig",
    "check_deepspeed_json",
    "deepspeed_settings",
    "load_run_config",
    "load_stages",
]

"""Declares, reads and checks all options of runs and commands.

Defaults < recipe (YAML) < flags and ``key.path=value`` in the order given. `schema` declares a
run's options and `checks` holds them against each other; `run` joins the two. `flags` derives the
command line from them, `loading` merges, `stages` reads chains, `command_line` parses the arguments
of any command into its options (`commands`), `problems` words the errors, and `deepspeed_json`
reads ZeRO and precision. Nothing here imports torch or deepspeed.
"""

from .batches import fit_to_ranks
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
    "fit_to_ranks",
    "load_run_config",
    "load_stages",
]

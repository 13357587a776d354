"""Options of ``minimoe-dist submit`` and ``status``."""

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from ..model_types import SPARSIFICATION
from .base import POSITIONAL, CommandOptions, RecipeOptions


class SubmitOptions(RecipeOptions):
    """The run and its Slurm job; what is not set stays as in the sbatch file."""

    recipe: str = Field(
        min_length=1, description="of the run, see configs/recipes", json_schema_extra=POSITIONAL
    )
    command: Literal["auto", "distill", "sparsify"] = Field(
        "auto", description="what the job does; auto: distill or sparsify, as the recipe says"
    )
    nodes: int = Field(1, ge=1, description="nodes of the job")
    tasks_per_node: int | None = Field(
        None, ge=1, description="tasks on each node; default one for each GPU, without GPUs one"
    )
    processes_per_task: int | None = Field(
        None, ge=1, description="ranks that a task starts; default 1, with one task a node its GPUs"
    )
    gpus_per_node: int | None = Field(None, ge=1, description="GPUs of each node; default none")
    cpus_per_task: int | None = Field(None, ge=1, description="CPUs of each task")
    time: str = Field("24:00:00", description="limit, as H:M:S or D-H:M:S")
    signal_seconds: int = Field(
        300, ge=30, description="how long before the limit the run is told to save and requeue"
    )
    partition: str | None = Field(None, description="of the cluster")
    account: str | None = Field(None, description="that pays")
    job_name: str | None = Field(None, description="default the name of output_dir")
    sbatch: list[str] = Field(
        [], description="further options of sbatch, as constraint=a100,qos=high"
    )
    dry_run: bool = Field(False, description="print what would be submitted, and stop")

    @property
    def presets(self) -> Sequence[str]:
        return (f"--model_type={SPARSIFICATION}",) if self.command == "sparsify" else ()


class StatusOptions(CommandOptions):
    """The run to look at."""

    run: str = Field(min_length=1, description="its output_dir", json_schema_extra=POSITIONAL)
    json_: bool = Field(False, description="print JSON instead of a table")

"""Options of ``minimoe-dist submit`` and ``status``."""

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field, field_validator

from ..model_types import SPARSIFICATION
from .base import POSITIONAL, CommandOptions, RecipeOptions
from .finetune import FinetuneOptions
from .predict import PredictOptions

_GPUS = r"^([\w.-]+:)?[1-9]\d*(,([\w.-]+:)?[1-9]\d*)*$"  # with their types or without


class JobOptions(CommandOptions):
    """A Slurm job; what is not set stays as in the sbatch file."""

    nodes: int = Field(1, ge=1, description="nodes of the job")
    tasks_per_node: int | None = Field(
        None, ge=1, description="tasks on each node; default one for each GPU, without GPUs one"
    )
    processes_per_task: int | None = Field(
        None, ge=1, description="ranks that a task starts; default 1, with one task a node its GPUs"
    )
    gpus_per_node: str | None = Field(
        None, pattern=_GPUS, description="GPUs of each node, as 4 or a100:4; default none"
    )
    gpus_per_task: str | None = Field(
        None, pattern=_GPUS, description="instead: of each task, with --tasks_per_node"
    )
    gres: str | None = Field(
        None, description="instead, where a site asks for generic resources: as gpu:4 or gpu:a100:4"
    )
    cpus_per_task: int | None = Field(None, ge=1, description="CPUs of each task")
    time: str = Field("24:00:00", description="limit, as H:M:S or D-H:M:S")
    signal_seconds: int = Field(
        300, ge=30, description="how long before the limit the run is told to save and requeue"
    )
    partition: str | None = Field(None, description="of the cluster")
    account: str | None = Field(None, description="that pays")
    python: str | None = Field(
        None,
        description="command that starts Python in the job's tasks, perhaps with arguments: of a "
        "container; default the one that submits",
    )
    job_name: str | None = Field(None, description="default the name of output_dir")
    sbatch: list[str] = Field(
        [], description="further options of sbatch, as constraint=a100,qos=high"
    )
    dry_run: bool = Field(False, description="print what would be submitted, and stop")

    @field_validator("gpus_per_node", "gpus_per_task", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


class SubmitOptions(JobOptions, RecipeOptions):
    """The run and its Slurm job."""

    recipe: str = Field(
        min_length=1, description="of the run, see configs/recipes", json_schema_extra=POSITIONAL
    )
    command: Literal["auto", "distill", "sparsify"] = Field(
        "auto", description="what the job does; auto: distill or sparsify, as the recipe says"
    )

    @property
    def presets(self) -> Sequence[str]:
        return (f"--model_type={SPARSIFICATION}",) if self.command == "sparsify" else ()


class SubmitFinetuneOptions(JobOptions, FinetuneOptions):
    """The fine-tuning and its Slurm job."""

    @property
    def finetuning(self) -> FinetuneOptions:
        """The options of the fine-tuning alone."""
        return self.given_to(FinetuneOptions)


class SubmitPredictOptions(JobOptions, PredictOptions):
    """The prediction and its Slurm job, of one task."""

    @property
    def predicting(self) -> PredictOptions:
        """The options of the prediction alone."""
        return self.given_to(PredictOptions)


class StatusOptions(CommandOptions):
    """The run to look at."""

    run: str = Field(min_length=1, description="its output_dir", json_schema_extra=POSITIONAL)
    json_: bool = Field(False, description="print JSON instead of a table")

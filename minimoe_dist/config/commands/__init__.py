"""Declares the options of each command in a class, from which flags and help pages follow.

`command_line` reads them. The options of commands that take a run hold it too (`schema`).
"""

from .base import POSITIONAL, CommandOptions, RecipeOptions
from .bench import BenchOptions
from .convert import ConvertOptions
from .demo import DemoOptions
from .distill import DistillOptions, SparsifyOptions
from .doctor import DoctorOptions
from .export import ExportOptions
from .finetune import FinetuneOptions
from .jobs import (
    JobOptions,
    StatusOptions,
    SubmitFinetuneOptions,
    SubmitOptions,
    SubmitPredictOptions,
)
from .measuring import EvaluateOptions, ReportOptions
from .plan import PlanOptions
from .predict import PredictOptions

__all__ = [
    "POSITIONAL",
    "BenchOptions",
    "CommandOptions",
    "ConvertOptions",
    "DemoOptions",
    "DistillOptions",
    "DoctorOptions",
    "EvaluateOptions",
    "ExportOptions",
    "FinetuneOptions",
    "JobOptions",
    "PlanOptions",
    "PredictOptions",
    "RecipeOptions",
    "ReportOptions",
    "SparsifyOptions",
    "StatusOptions",
    "SubmitFinetuneOptions",
    "SubmitOptions",
    "SubmitPredictOptions",
]

"""The options of commands other than ``distill`` and ``sparsify``: one flat class for each.

Flags, help pages and checks follow from the fields (see `command_line`). ``distill`` and
``sparsify`` take a whole run instead, which `schema` declares.
"""

from .base import POSITIONAL, CommandOptions, is_positional
from .bench import BenchOptions
from .convert import ConvertOptions
from .demo import DemoOptions
from .doctor import DoctorOptions
from .export import ExportOptions
from .finetune import FinetuneOptions
from .jobs import StatusOptions, SubmitOptions
from .measuring import EvaluateOptions, ReportOptions
from .plan import PlanOptions

__all__ = [
    "POSITIONAL",
    "BenchOptions",
    "CommandOptions",
    "ConvertOptions",
    "DemoOptions",
    "DoctorOptions",
    "EvaluateOptions",
    "ExportOptions",
    "FinetuneOptions",
    "PlanOptions",
    "ReportOptions",
    "StatusOptions",
    "SubmitOptions",
    "is_positional",
]

"""The options of commands other than ``distill`` and ``sparsify``: one flat class for each.

Flags, help pages and checks follow from the fields (see `command_line`). ``distill`` and
``sparsify`` take a whole run instead, which `schema` declares.
"""

from minimoe_dist.config.commands.base import POSITIONAL, CommandOptions, is_positional
from minimoe_dist.config.commands.bench import BenchOptions
from minimoe_dist.config.commands.convert import ConvertOptions
from minimoe_dist.config.commands.demo import DemoOptions
from minimoe_dist.config.commands.doctor import DoctorOptions
from minimoe_dist.config.commands.export import ExportOptions
from minimoe_dist.config.commands.finetune import FinetuneOptions
from minimoe_dist.config.commands.jobs import StatusOptions, SubmitOptions
from minimoe_dist.config.commands.measuring import EvaluateOptions, ReportOptions
from minimoe_dist.config.commands.plan import PlanOptions

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

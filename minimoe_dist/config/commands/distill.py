"""Options of ``minimoe-dist distill`` and ``sparsify``, beside those of their run."""

from collections.abc import Sequence

from pydantic import Field

from ..model_types import SPARSIFICATION
from .base import RecipeOptions


class DistillOptions(RecipeOptions):
    """The run to do, or only to print."""

    dry_run: bool = Field(
        False, description="print the resolved run and what would stop it (then status 2)"
    )


class SparsifyOptions(DistillOptions):
    """The run of ``sparsify``, whose model type is fixed."""

    @property
    def presets(self) -> Sequence[str]:
        return (f"--model_type={SPARSIFICATION}",)

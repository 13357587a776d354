"""Options of ``minimoe-dist bench``."""

from pydantic import Field

from .base import POSITIONAL, RecipeOptions


class BenchOptions(RecipeOptions):
    """The recipe to measure, for how long, and where the results go."""

    recipe: str = Field(
        min_length=1,
        description="run whose step is measured; of stages the first",
        json_schema_extra=POSITIONAL,
    )
    filled: float | None = Field(
        None, gt=0, le=1, description="share of positions that are no padding; default as in the "
        "recipe's corpus, without one 1"
    )  # fmt: skip
    steps: int = Field(10, ge=1, description="steps that are timed, behind some that warm up")
    seconds: float = Field(
        0.3, ge=0, description="given to each matrix product, copy and launch; three runs at least"
    )
    output: str = Field(
        "runs/bench", description="folder for machine.yaml, bench.json, bench.png; all nodes see it"
    )

"""Options of ``minimoe-dist demo``."""

from pydantic import Field

from .base import CommandOptions


class DemoOptions(CommandOptions):
    """The demo's folder, and how long and on how many processes it trains."""

    output_dir: str = Field("runs/demo", description="folder of corpus, run and export")
    steps: int | None = Field(None, ge=1, description="optimizer steps; default the recipe's")
    num_processes: int | None = Field(
        None, ge=1, description="processes to distil on; default 2 on CPUs, else one per GPU"
    )

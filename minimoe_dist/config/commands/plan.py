"""Options of ``minimoe-dist plan``."""

from pydantic import Field

from .base import RecipeOptions


class PlanOptions(RecipeOptions):
    """The recipe to plan, the machine to plan it for, and where the plan goes."""

    machine: str | None = Field(
        None, description="name in configs/machines, or a YAML file; default this machine, measured"
    )
    measure: bool = Field(False, description="take the matmul rate of this machine instead")
    nodes: int | None = Field(None, ge=1, description="number of nodes")
    ranks_per_node: int | None = Field(None, ge=1, description="processes a node, one per device")
    memory_gib: float | None = Field(None, gt=0, description="memory of a rank's device, GiB")
    efficiency: float | None = Field(
        None, gt=0, le=1, description="share of the matmul rate that a step reaches"
    )
    link_gb_per_second: float | None = Field(
        None, gt=0, description="between ranks of a node, 10^9 bytes/s"
    )
    network_gb_per_second: float | None = Field(
        None, gt=0, description="of a rank between nodes, 10^9 bytes/s"
    )
    price_per_device_hour: float | None = Field(
        None, ge=0, description="of a rank, in any currency"
    )
    tokens: int | None = Field(
        None, ge=1, description="plan for a corpus of so many tokens instead of the recipe's"
    )
    output: str | None = Field(None, description="also write the plan to FILE.json or FILE.png")

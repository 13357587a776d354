"""Options of ``minimoe-dist doctor``."""

from pydantic import Field

from .base import CommandOptions


class DoctorOptions(CommandOptions):
    """The folder and device to check, and how long a check may take."""

    output_dir: str = Field("runs", description="folder that all nodes must see")
    output: str | None = Field(None, description="also write what was found to FILE.json")
    use_cpu: bool = Field(False, description="check CPUs although there is a GPU")
    timeout_seconds: int = Field(
        120, ge=2, description="limit of the rendezvous and of a collective; half of it of checks"
    )
    least_free_gib: float = Field(
        5.0, ge=0, description="GiB that output_dir's disk must have left; 0 asks for none"
    )
    megabytes: int = Field(64, ge=1, description="that are written and read to time the disk")

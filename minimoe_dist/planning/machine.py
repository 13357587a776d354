"""Describes machines for plans: ranks, memory, rates and prices, from YAML and flags."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, ValidationInfo, field_validator

from ..config import ConfigError
from ..config.loading import read_recipe
from ..config.problems import Path as OptionPath
from ..config.problems import describe, nearest
from ..config.schema import Section
from .rates import PARTS, ProductRate

GIB = 1 << 30
DTYPES = ("float32", "bfloat16", "float16", "float8")


class Machine(Section):
    """A machine of equal nodes; every rank has one device, or its share of a node's CPUs."""

    name: str = Field("this machine", description="for people")
    device: Literal["cuda", "cpu"] = Field("cuda", description="what a rank computes on")
    nodes: int = Field(1, ge=1, description="number of nodes")
    ranks_per_node: int = Field(ge=1, description="processes a node, one per device")
    memory_gib: float = Field(gt=0, description="of a rank's device, or its share of a node, GiB")
    framework_gib: float = Field(
        0.0, ge=0, description="of it, what a process takes before its first tensor, GiB"
    )
    tflops: dict[str, float] = Field(
        description="matrix products a second of a rank, by type, in 10^12 operations"
    )
    efficiency: float = Field(
        0.5, gt=0, le=1, description="share of that rate which a training step reaches"
    )
    memory_gb_per_second: float = Field(
        gt=0, description="rate at which a rank reads and writes its memory, 10^9 bytes/s"
    )
    link_gb_per_second: float = Field(
        gt=0, description="between two ranks of a node, in each direction, 10^9 bytes/s"
    )
    network_gb_per_second: float = Field(
        gt=0, description="a rank's share of the network between nodes, 10^9 bytes/s"
    )
    latency_microseconds: float = Field(20.0, ge=0, description="of one collective")
    price_per_device_hour: float = Field(0.0, ge=0, description="of a rank, in any currency")
    products: dict[str, ProductRate] = Field(
        {}, description="matrix products' rates by type and size, as measured; without efficiency"
    )
    launch_microseconds: float = Field(0.0, ge=0, description="of an operator on next to nothing")
    recorded_launch_microseconds: float = Field(
        0.0, ge=0, description="of a kernel on next to nothing that is played in a CUDA graph"
    )
    parts: dict[str, float] = Field(
        {}, description="how many times longer than counted a step's parts take, as measured"
    )

    @field_validator("tflops")
    @classmethod
    def _known_types(cls, value: dict[str, float]) -> dict[str, float]:
        unknown = sorted(set(value) - set(DTYPES))
        if unknown or "float32" not in value:
            raise ValueError(f"must name float32 and may name {', '.join(DTYPES[1:])}, no others")
        if min(value.values()) <= 0:
            raise ValueError("must be rates above 0")
        return value

    @field_validator("products", "parts")
    @classmethod
    def _known_names(cls, value: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        names = DTYPES if info.field_name == "products" else PARTS
        if set(value) - set(names):
            raise ValueError(f"may name {', '.join(names)}, no others")
        return value

    @property
    def ranks(self) -> int:
        """The number of ranks on all nodes."""
        return self.nodes * self.ranks_per_node

    def rate(self, dtype: str) -> float:
        """Returns the operations a second that a training step reaches in a type.

        Where the type is not stated, it is bfloat16's for float8, else float32's.
        """
        if dtype == "float8" and dtype not in self.tflops:
            dtype = "bfloat16"
        return 1e12 * self.efficiency * self.tflops.get(dtype, self.tflops["float32"])

    def product_rate(self, dtype: str, size: float) -> float:
        """Returns the operations a second of matrix products of a size, alone.

        Where the type was not measured, a measured type of 16 bits stands for another one and for
        float8; where no such type was measured either, it is :meth:`rate`.
        """
        narrow = () if dtype == "float32" else ("bfloat16", "float16")
        for name in (dtype, *narrow):
            if name in self.products:
                return self.products[name].of(size)
        return self.rate(dtype)

    def bandwidth(self, group: int, stride: int = 1) -> float:
        """Returns the bytes a second and rank within a group of every `stride`-th rank."""
        inside = self.nodes == 1 or group * stride <= self.ranks_per_node
        return 1e9 * (self.link_gb_per_second if inside else self.network_gb_per_second)


def load_machine(
    name: str, folders: Sequence[Path], changes: Mapping[str, Any] | None = None
) -> Machine:
    """Loads the description of a machine.

    Args:
        name: a YAML file, or the name of one in `folders`.
        folders: folders of machines' descriptions.
        changes: fields that replace the file's.

    Raises:
        ConfigError: no such machine, or its description is wrong.
    """
    path = _find(name, folders)
    tree = {"name": path.stem, **read_recipe(str(path)), **(changes or {})}
    try:
        return Machine.model_validate(tree)
    except ValidationError as error:
        origins: dict[OptionPath, str] = {(key,): f"{path}: {key}" for key in tree}
        raise ConfigError(describe(error, origins, lambda at: f"give it in {path}")) from None


def machine_yaml(machine: Machine) -> str:
    """Returns a description that :func:`load_machine` reads."""
    return yaml.safe_dump(machine.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _find(name: str, folders: Sequence[Path]) -> Path:
    path = Path(name).expanduser()
    if path.suffix in (".yaml", ".yml"):
        if path.is_file():
            return path
        raise ConfigError(f"machine: {name}: no such file; give a YAML of a machine")
    paths = {file.stem: file for folder in folders for file in sorted(folder.glob("*.yaml"))}
    if name in paths:
        return paths[name]
    suggestion = nearest(name, paths)
    hint = (
        f"did you mean {suggestion}?" if suggestion else f"there are {', '.join(paths) or 'none'}"
    )
    raise ConfigError(f"machine: {name} is not described; {hint} (or give a YAML file)")

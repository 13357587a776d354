"""Golden numbers of the published implementation, copied from where it ran."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

FOLDER = Path(__file__).parent / "data" / "golden"
TOLERANCE = {"rtol": 1e-5, "atol": 2e-5}


def load_golden(name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The configuration and the tensors of a file; skips the test where that is missing."""
    path = FOLDER / f"{name}.safetensors"
    if not path.exists():
        pytest.skip(f"{path} is missing: golden numbers of the published implementation")
    with safe_open(path, "pt") as file:
        config: dict[str, Any] = json.loads(file.metadata()["meta"])["config"]
    return config, load_file(path)


def part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors under a prefix, without it."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

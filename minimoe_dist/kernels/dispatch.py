"""Decides where operators run their kernels."""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def runs_kernel(values: "Tensor") -> bool:
    """Tells whether kernels run: on a GPU, or by ``TRITON_INTERPRET=1`` on a CPU, for tests."""
    return values.is_cuda or os.environ.get("TRITON_INTERPRET") == "1"

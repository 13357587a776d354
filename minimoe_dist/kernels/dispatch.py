"""Where operators run their kernels."""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def runs_kernel(values: "Tensor") -> bool:
    """On a GPU; on a CPU only in Triton's interpreter (``TRITON_INTERPRET=1``), for tests."""
    return values.is_cuda or os.environ.get("TRITON_INTERPRET") == "1"

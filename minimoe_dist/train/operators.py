"""Lists DeepSpeed's compiled operators, built or buildable, on this machine."""

import contextlib
import io

from deepspeed.ops.op_builder.all_ops import ALL_OPS
from deepspeed.ops.op_builder.builder import OpBuilder

from .engine import quiet_deepspeed


def operators() -> dict[str, str]:
    """Returns each operator's state: ``built``, ``can be built`` or ``cannot be built``."""
    states = {}
    with quiet_deepspeed(), contextlib.redirect_stderr(io.StringIO()):
        for name in sorted(ALL_OPS):
            states[name] = _state(ALL_OPS[name])
    return states


def _state(builder: OpBuilder) -> str:
    try:
        from deepspeed.git_version_info_installed import installed_ops
    except ImportError:
        installed_ops = {}
    if installed_ops.get(builder.name):
        return "built"
    try:
        return "can be built" if builder.is_compatible(verbose=False) else "cannot be built"
    except Exception:  # builders look for compilers and drivers in many ways
        return "cannot be built"

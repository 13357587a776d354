"""Collects the code version and environment of a job's submission, for the run's folder."""

import getpass
import os
import platform
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from .. import __version__

_PACKAGES = ("torch", "deepspeed", "transformers", "megatron-core", "numpy", "safetensors")
# The value of a variable of such a name may be a secret or a whole certificate.
_SECRET = re.compile(r"TOKEN|KEY|SECRET|PASSW|CREDENTIAL|AUTH|COOKIE", re.IGNORECASE)
_RECORDED = re.compile(
    r"(MINIMOE|CUDA|NCCL|GLOO|OMP|HF|TORCH|PYTORCH|DS|DEEPSPEED|TRITON|LD|CONDA|LOADED|SBATCH|SRUN)"
    r"_|(PATH|PYTHONPATH|VIRTUAL_ENV|LOADEDMODULES)$"
)


def code_version() -> dict[str, Any]:
    """Returns the package's version and, in a clone, git's commit and whether files differ."""
    facts: dict[str, Any] = {"version": __version__}
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return facts
    commit = _git(root, "rev-parse", "HEAD")
    if commit:
        changes = _git(root, "status", "--porcelain", "--untracked-files=no")
        facts |= {"commit": commit, "dirty": bool(changes)}
    return facts


def environment() -> dict[str, Any]:
    """Returns Python, packages, machine and the variables that may change what a run does."""
    packages: dict[str, str | None] = {}
    for name in _PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = None
    variables = {
        name: value
        for name, value in sorted(os.environ.items())
        if _RECORDED.match(name) and not _SECRET.search(name)
    }
    return {
        "python": platform.python_version(),
        "executable": sys.executable,
        "packages": packages,
        "host": platform.node(),
        "user": getpass.getuser(),
        "folder": str(Path.cwd()),
        "variables": variables,
    }


def _git(root: Path, *arguments: str) -> str | None:
    try:
        process = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return process.stdout.strip() if process.returncode == 0 else None

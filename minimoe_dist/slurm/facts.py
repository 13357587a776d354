"""With which code and in which environment a job was submitted, for the run's folder."""

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
# What a variable of these names says may be a secret or a whole certificate.
_SECRET = re.compile(r"TOKEN|KEY|SECRET|PASSW|CREDENTIAL|AUTH|COOKIE", re.IGNORECASE)
_TOLD = re.compile(
    r"(MINIMOE|CUDA|NCCL|GLOO|OMP|HF|TORCH|PYTORCH|DS|DEEPSPEED|TRITON|LD|CONDA|LOADED|SBATCH|SRUN)"
    r"_|(PATH|PYTHONPATH|VIRTUAL_ENV|LOADEDMODULES)$"
)


def code_version() -> dict[str, Any]:
    """The package's version and, in a clone, git's commit and whether files differ from it."""
    found: dict[str, Any] = {"version": __version__}
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return found
    commit = _git(root, "rev-parse", "HEAD")
    if commit:
        changes = _git(root, "status", "--porcelain", "--untracked-files=no")
        found |= {"commit": commit, "dirty": bool(changes)}
    return found


def environment() -> dict[str, Any]:
    """Python, packages, machine and the variables that may change what a run does."""
    packages: dict[str, str | None] = {}
    for name in _PACKAGES:
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = None
    variables = {
        name: value
        for name, value in sorted(os.environ.items())
        if _TOLD.match(name) and not _SECRET.search(name)
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


def _git(root: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *words], capture_output=True, text=True, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None

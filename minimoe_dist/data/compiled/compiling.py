"""Compiles this folder at the first start; later starts read it from numba's cache.

``inner`` functions are called by other compiled ones and become part of them; ``entry`` functions
are called by the interpreter, give up its lock, and are compiled when their module is imported.

numba notices a change of a function's own file, but not of the files of the functions that it
calls; and of processes that start at the same time with different keys (machines of two kinds that
share a folder, say) one may overwrite the code that another's index names. So every entry carries
a fingerprint of all sources, of numba and of the processor in its name, which is its files' name
too: what lies in a file never depends on who wrote it, or when.

With NUMBA_DISABLE_JIT=1 everything runs as Python, slowly, for who wants to step through it.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from functools import cache
from pathlib import Path
from typing import Any

import llvmlite.binding
import numba
from filelock import FileLock
from numba import njit, types

from .. import keyed, row_counts

inner = njit(no_cpython_wrapper=True, no_cfunc_wrapper=True)
_FOLDER = Path(__file__).parent
_LONGEST_WAIT_SECONDS = 120.0
_NOT_KEPT = (
    "the loader is compiled anew at each start, which takes some ten seconds: numba's cache can "
    "neither be kept beside the package nor in the user's cache folder, or it is broken; set "
    "NUMBA_CACHE_DIR to an empty folder that can be written"
)


@cache
def _fingerprint() -> str:
    digest = hashlib.sha256()
    shared_sources = [Path(str(module.__file__)) for module in (keyed, row_counts)]
    for path in (*sorted(_FOLDER.glob("*.py")), *shared_sources):
        digest.update(path.read_bytes())
    digest.update(f"{numba.__version__} {llvmlite.binding.get_host_cpu_name()}".encode())
    digest.update(llvmlite.binding.get_host_cpu_features().flatten().encode())
    return digest.hexdigest()[:16]


def entry(
    returns: types.Type, *arguments: types.Type, keeps_lock: bool = False
) -> Callable[[Callable[..., Any]], Any]:
    """Makes a function that the interpreter calls; it runs without the interpreter's lock.

    Args:
        returns: type of what it returns.
        *arguments: types of its arguments. There is one version of it: what is called with
            other types is refused with a TypeError.
        keeps_lock: for what takes microseconds. A thread that gave the lock up may wait five
            milliseconds until a busy one hands it back.
    """

    def compile_it(function: Callable[..., Any]) -> Any:
        if numba.config.DISABLE_JIT:
            return function
        function.__qualname__ += f"_{_fingerprint()}"
        signature, options = returns(*arguments), {"nogil": not keeps_lock}
        try:
            compiled = njit(cache=True, **options)(function)
            cached_files = Path(compiled.stats.cache_path).glob(f"*.{function.__qualname__}-*.nbc")
            with nullcontext() if any(cached_files) else _one_process_at_a_time():
                compiled.compile(signature)
            compiled.disable_compile()
            return compiled
        except (OSError, RuntimeError, EOFError, pickle.PickleError):
            warnings.warn(_NOT_KEPT, RuntimeWarning, stacklevel=2)
            return njit(signature, **options)(function)

    return compile_it


@contextmanager
def _one_process_at_a_time() -> Iterator[None]:
    """Lets one process of this machine and user compile, while the others wait for its code."""
    name = f"minimoe-dist-{os.getuid()}-{_fingerprint()}.lock"
    lock = FileLock(Path(tempfile.gettempdir()) / name)
    # Without a lock each process compiles for itself, which only takes longer.
    with suppress(OSError, NotImplementedError):
        lock.acquire(timeout=_LONGEST_WAIT_SECONDS)
    try:
        yield
    finally:
        lock.release()


def read_only(dtype: types.Type, dimensions: int = 1) -> types.Array:
    """Returns the type of an array that is only read; it may be a view that is not aligned."""
    return types.Array(dtype, dimensions, "C", readonly=True, aligned=False)


def filled(dtype: types.Type, dimensions: int = 1) -> types.Array:
    """Returns the type of an array that the function writes into."""
    return types.Array(dtype, dimensions, "C")

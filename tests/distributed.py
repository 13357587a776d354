"""Runs a test's body on real gloo processes.

The processes are forked from a server that has imported torch and DeepSpeed once, so a body on two
ranks starts in a tenth of a second. A body is a module-level function; what rank 0 … N-1 return
comes back as a list.
"""

import multiprocessing as mp
import os
import pickle
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

_TIMEOUT_SECONDS = 270  # what takes seconds takes minutes on a busy machine
_PRELOADED = ["tests.preloaded"]


def _context() -> Any:
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    return context


def _child(
    body: Callable[..., Any], rank: int, world_size: int, folder: str, arguments: tuple[Any, ...]
) -> None:
    import torch

    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK=str(rank), TORCH_GLOO_LAZY_INIT="0"
    )
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world_size
    )
    out = Path(folder) / f"rank_{rank}.pickle"
    try:
        result: Any = (True, body(*arguments))
    except BaseException:
        result = (False, traceback.format_exc())
    out.write_bytes(pickle.dumps(result))
    # No destructors: a failed rank must not wait for its peers.
    os._exit(0)


def run_distributed(body: Callable[..., Any], world_size: int, *arguments: Any) -> list[Any]:
    """Runs ``body(*arguments)`` on ``world_size`` processes and returns what each returned."""
    context = _context()
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            context.Process(target=_child, args=(body, rank, world_size, folder, arguments))
            for rank in range(world_size)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(_TIMEOUT_SECONDS)
        hung = [rank for rank, process in enumerate(processes) if process.is_alive()]
        for process in processes:
            process.kill()
        results = []
        for rank in range(world_size):
            path = Path(folder) / f"rank_{rank}.pickle"
            ok, value = pickle.loads(path.read_bytes()) if path.exists() else (False, "no result")
            if not ok:
                raise AssertionError(f"rank {rank} failed (hung ranks: {hung}):\n{value}")
            results.append(value)
        return results

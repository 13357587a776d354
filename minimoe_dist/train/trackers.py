"""Where a run's curves go beside its own files: TensorBoard, Weights & Biases, MLflow.

Each through its own library and its own environment (``WANDB_MODE=offline``, ``WANDB_PROJECT``,
``MLFLOW_TRACKING_URI``, ``MLFLOW_EXPERIMENT_NAME``, …). A run that goes on goes on there too: the
ids are in ``trackers.json``. What a tracker cannot take never ends the run.
"""

import math
import os
import queue
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Protocol

from ..durable import write_json
from ..runs.folder import RunFolder
from ..runs.reading import Record
from ..runtime import logger
from .journal import EventFile

_PROJECT = "minimoe-dist"  # where the environment names none
_STEP = "trained_steps"
_LOCAL = "tensorboard"
_MOST_WAITING = 1000  # records that a tracker has not taken yet
_CLOSE_SECONDS = 20.0
_log = logger("train.trackers")


class Tracker(Protocol):
    """Takes a run's scalars."""

    def add(self, step: int, scalars: Mapping[str, float]) -> None:
        """Takes scalars of a step by tag."""


class _Ids(Record):
    """``trackers.json``: a run's ids at its trackers."""

    wandb: str | None = None
    mlflow: str | None = None


def open_trackers(
    names: Sequence[str], folder: RunFolder, first_step: int, options: Mapping[str, Any]
) -> list["Tracked"]:
    """Opens a run's trackers.

    Args:
        names: of ``training.report_to``.
        folder: of the run.
        first_step: steps done before; 0 begins a new run at each tracker.
        options: of the run, as JSON.
    """
    ids = _Book(folder, first_step)
    return [
        Tracked(name, partial(_open, name, folder, first_step, options, ids), name == _LOCAL)
        for name in names
    ]


class _Book:
    """``trackers.json``; a run that begins anew forgets what stood there."""

    def __init__(self, folder: RunFolder, first_step: int) -> None:
        self._path = folder.trackers
        self._lock = threading.Lock()
        self._ids = (_Ids.find(self._path) if first_step else None) or _Ids()
        if not first_step:
            with suppress(OSError):
                self._path.unlink(missing_ok=True)

    def find(self, name: str) -> str | None:
        found: str | None = getattr(self._ids, name)
        return found

    def note(self, name: str, number: str) -> None:
        with self._lock:
            self._ids = self._ids.model_copy(update={name: number})
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self._path, self._ids.model_dump())


class Tracked:
    """A tracker that the run never waits for, and whose errors are told once and end nothing.

    One that may be far away works in a thread of its own: it is opened there, and what it cannot
    take in time is left out.

    Args:
        name: for people.
        make: opens it.
        is_local: whether it only writes a file, and works at once.
    """

    def __init__(self, name: str, make: Callable[[], Any], is_local: bool = False) -> None:
        self._name = name
        self._make = make
        self._tracker: Any = None
        self._fails = False
        self._scalars: queue.Queue[tuple[int, dict[str, float]] | None] | None = None
        if is_local:
            self._open()
            return
        self._scalars = queue.Queue(_MOST_WAITING)
        self._thread = threading.Thread(target=self._work, name=f"tracker-{name}", daemon=True)
        self._thread.start()

    def add(self, step: int, scalars: Mapping[str, float]) -> None:
        """Takes scalars of a step by tag, those that are finite."""
        finite = {tag: value for tag, value in scalars.items() if math.isfinite(value)}
        if self._fails:
            return
        if self._scalars is None:
            self._try(lambda: self._tracker.add(step, finite))
            return
        try:
            self._scalars.put_nowait((step, finite))
        except queue.Full:
            self._give_up(f"{_MOST_WAITING} records wait for it")

    def close(self) -> None:
        """Waits for what is under way, for some seconds at most."""
        if self._scalars is None or self._fails:
            return
        try:
            self._scalars.put(None, timeout=_CLOSE_SECONDS)
            self._thread.join(_CLOSE_SECONDS)
        except queue.Full:
            pass
        if self._thread.is_alive() and not self._fails:
            self._give_up(f"no answer within {_CLOSE_SECONDS:g} s at its end")

    def _work(self) -> None:
        assert self._scalars is not None
        self._open()
        while not self._fails and (record := self._scalars.get()) is not None:
            self._try(partial(self._tracker.add, *record))
        if not self._fails:
            self._try(self._tracker.close)

    def _open(self) -> None:
        self._try(lambda: setattr(self, "_tracker", self._make()))

    def _try(self, action: Callable[[], Any]) -> None:
        try:
            action()
        except Exception as error:
            self._give_up((str(error).strip() or type(error).__name__).splitlines()[0])

    def _give_up(self, reason: str) -> None:
        if not self._fails:
            _log.warning("%s takes nothing any more (%s); the run goes on", self._name, reason)
        self._fails = True


def _open(
    name: str, folder: RunFolder, first_step: int, options: Mapping[str, Any], ids: _Book
) -> Tracker:
    if name == _LOCAL:
        return EventFile(folder.tensorboard, first_step + 1)
    remote: _Wandb | _Mlflow
    if name == "wandb":
        remote = _Wandb(folder, options, ids.find(name))
    else:
        remote = _Mlflow(folder, options, ids.find(name))
    ids.note(name, remote.id)
    return remote


class _Wandb:
    def __init__(self, folder: RunFolder, options: Mapping[str, Any], run_id: str | None) -> None:
        import wandb

        self.id = run_id or uuid.uuid4().hex[:16]
        folder.path.mkdir(parents=True, exist_ok=True)  # or it would choose another
        self._run = wandb.init(
            dir=str(folder.path),
            project=os.environ.get("WANDB_PROJECT", _PROJECT),
            name=folder.path.absolute().name,
            id=self.id,
            resume="allow",
            config=dict(options),
            settings=wandb.Settings(silent=True, console="off"),
        )
        # By a count of its own: after a kill steps are taken again, which W&B's would refuse.
        self._run.define_metric("*", step_metric=_STEP)

    def add(self, step: int, scalars: Mapping[str, float]) -> None:
        self._run.log({**scalars, _STEP: step})

    def close(self) -> None:
        self._run.finish()


class _Mlflow:
    def __init__(self, folder: RunFolder, options: Mapping[str, Any], run_id: str | None) -> None:
        from mlflow.entities import Metric, Param
        from mlflow.tracking import MlflowClient

        self._make = Metric
        self._client = MlflowClient()
        if run_id is None:
            project = os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)
            experiment = self._client.get_experiment_by_name(project)
            number = (
                experiment.experiment_id if experiment else self._client.create_experiment(project)
            )
            run = self._client.create_run(number, run_name=folder.path.absolute().name)
            run_id = run.info.run_id
            params = [Param(key, value[:6000]) for key, value in _flat(options)]
            for first in range(0, len(params), 100):  # as many as a call may have
                self._client.log_batch(run_id, params=params[first : first + 100])
        else:
            self._client.update_run(run_id, status="RUNNING")
        self.id: str = run_id

    def add(self, step: int, scalars: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        metrics = [self._make(tag, value, now, step) for tag, value in scalars.items()]
        self._client.log_batch(self.id, metrics=metrics)

    def close(self) -> None:
        self._client.set_terminated(self.id)


def _flat(options: Any, path: str = "") -> list[tuple[str, str]]:
    if isinstance(options, Mapping):
        entries = [(str(key), value) for key, value in options.items()]
    elif isinstance(options, list):
        entries = [(str(number), value) for number, value in enumerate(options)]
    else:
        return [(path, str(options))]
    return [
        found for key, value in entries for found in _flat(value, f"{path}.{key}" if path else key)
    ]

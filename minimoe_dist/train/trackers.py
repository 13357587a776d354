"""Where a run's curves go beside its own files: TensorBoard, Weights & Biases, MLflow.

Each through its own library and its own environment (``WANDB_MODE=offline``, ``WANDB_PROJECT``,
``MLFLOW_TRACKING_URI``, ``MLFLOW_EXPERIMENT_NAME``, …). A run that goes on goes on there too: the
ids are in ``trackers.json``. What a tracker cannot take never ends the run.
"""

import math
import os
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from ..durable import write_json
from ..runs.folder import RunFolder
from ..runs.reading import Record
from ..runtime import logger
from .journal import EventFile

_PROJECT = "minimoe-dist"  # where the environment names none
_STEP = "trained_steps"
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
    """Opens a run's trackers; one that cannot be opened is told and left out.

    Args:
        names: of ``training.report_to``.
        folder: of the run.
        first_step: steps done before; 0 begins a new run at each tracker.
        options: of the run, as JSON.
    """
    ids = (_Ids.find(folder.trackers) if first_step else None) or _Ids()
    opened = []
    for name in names:
        tracked = Tracked(name, partial(_open, name, folder, first_step, options, ids))
        opened.append(tracked)
        if tracked.id is not None:
            ids = ids.model_copy(update={name: tracked.id})
    if ids != _Ids():
        try:
            folder.path.mkdir(parents=True, exist_ok=True)
            write_json(folder.trackers, ids.model_dump())
        except OSError as error:
            _log.warning("%s: not written (%s)", folder.trackers, error.strerror or error)
    return opened


class Tracked:
    """A tracker whose errors are told once, and end nothing.

    Attributes:
        id: of the run there, where it has one.
    """

    def __init__(self, name: str, make: Callable[[], Any]) -> None:
        self._name = name
        self._tracker: Any = None
        self._try(lambda: setattr(self, "_tracker", make()))
        self.id: str | None = getattr(self._tracker, "id", None)

    def add(self, step: int, scalars: Mapping[str, float]) -> None:
        """Takes scalars of a step by tag, those that are finite."""
        finite = {tag: value for tag, value in scalars.items() if math.isfinite(value)}
        if self._tracker is not None:
            self._try(lambda: self._tracker.add(step, finite))

    def close(self) -> None:
        """Waits for what is under way, where the tracker does."""
        if hasattr(self._tracker, "close"):
            self._try(self._tracker.close)

    def _try(self, action: Callable[[], Any]) -> None:
        try:
            action()
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            _log.warning("%s takes nothing any more (%s); the run goes on", self._name, reason)
            self._tracker = None


def _open(
    name: str, folder: RunFolder, first_step: int, options: Mapping[str, Any], ids: _Ids
) -> Tracker:
    if name == "wandb":
        return _Wandb(folder, options, ids.wandb)
    if name == "mlflow":
        return _Mlflow(folder, options, ids.mlflow)
    return EventFile(folder.tensorboard, first_step + 1)


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
        self._client.log_batch(self.id, metrics=metrics, synchronous=False)

    def close(self) -> None:
        from mlflow import flush_async_logging

        flush_async_logging()
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

"""A run of ``minimoe-dist sparsify``: importances of a BERT's elements, and its sub-models.

The masked-LM loss of a share of the corpus, spread over ranks, says how much each head, neuron and
hidden dimension matters. The model is then reordered, which does not change what it computes, and
exported with the map of its sub-models, from which sparse students start.
"""

import math
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ..checkpoints.export import export_elastic
from ..checkpoints.writing import Ranks
from ..config import RunConfig
from ..config.checks import SPARSIFIED
from ..data.batches import MicroBatch
from ..data.loader import PairLoader
from ..data.placing import PlacedBatch, Placer
from ..models.elastic import ElementValues
from ..models.elastic_build import load_masked_lm
from ..models.elastic_surgery import element_orders, reorder
from ..models.importance import ImportanceMeter, mask_gradient
from ..models.mlm_head import ElasticForRelationsAndMaskedLM
from ..models.submodel_picture import draw_sub_models
from ..models.submodels import build_sparsity_map
from ..runs.folder import RunFolder
from ..runs.summaries import SparsificationSummary
from ..runtime import Launch, logger
from ..train.loop import LoopOptions
from ..train.progress import Progress
from ..train.resuming import Checkpoints
from ..train.step_metrics import HostCopy
from .building import loop_options, run_checkpoints
from .corpora import open_data

_SAME_FUNCTION = 1e-5
_log = logger("sparsify")


class MeasuredBatch:
    """The measurement of a batch of all ranks, on its way to the host.

    Args:
        total: [2 + elements]: what :func:`..models.importance.mask_gradient` returned, then the
            number of ranks that were asked to stop, both summed over ranks.
    """

    def __init__(self, total: Tensor) -> None:
        self._total = HostCopy(total)

    @property
    def gradient(self) -> Tensor:
        """The number of predicted positions, then the masks' gradient: float32 [1 + elements]."""
        return self._total.values[:-1]

    @property
    def stop_requested(self) -> bool:
        """Whether a rank was asked to stop."""
        return bool(self._total.values[-1] > 0)

    @property
    def problem(self) -> str | None:
        """Why the batch counts for nothing: its gradient is not finite; None for a good one."""
        if bool(self.gradient.isfinite().all()):
            return None
        return "the masks' gradient is not finite: batch left out"

    @property
    def unchanged(self) -> frozenset[str]:
        """The importances, where the batch counts for nothing."""
        return frozenset({"importances"} if self.problem else ())


class Sparsification:
    """A model that is measured on a corpus; the work of :func:`..train.loop.run_steps`.

    Args:
        config: the run; its teacher is sparsified.
        launch: the processes.
        device: of this rank.

    Raises:
        UserError: the model has no masked-LM head, or the corpus is of another vocabulary.
    """

    engines = ()

    def __init__(self, config: RunConfig, launch: Launch, device: torch.device) -> None:
        self._config = config
        self._launch = launch
        self._device = device
        self._folder = RunFolder(Path(config.output_dir))
        self._data = open_data(config)
        self._model = load_masked_lm(config.teacher.model_name_or_path).to(device)
        self._model.requires_grad_(False)
        self._meter = ImportanceMeter(self._model.config.sizes)
        samples = config.sparsify.fraction * self._data.pairs.num_samples
        steps = math.ceil(samples / config.global_batch_size(launch.world_size))
        self._total_steps = config.training.max_steps or max(1, steps)
        self._consumed_samples = 0
        self._loader: PairLoader
        self._progress: Progress

    @property
    def options(self) -> LoopOptions:
        """The number of steps, and when they are saved."""
        return loop_options(self._config, self._total_steps, self._device)

    def open_checkpoints(self, ranks: Ranks) -> Checkpoints:
        """Opens the checkpoints in the run's folder.

        Args:
            ranks: the processes, as they save.
        """
        return run_checkpoints(self._config, ranks, self._total_steps, self._data.contents())

    def progress(self) -> dict[str, Any]:
        """Returns the number of consumed samples."""
        return {"consumed_samples": self._loader.consumed_samples}

    def tensors(self) -> Mapping[str, Tensor]:
        """Returns the meter's sums and number of batches; all ranks hold the same meter."""
        return self._meter.state_dict()

    def resume(self, progress: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Restores what :meth:`progress` and :meth:`tensors` returned."""
        self._consumed_samples = progress["consumed_samples"]
        self._meter.load_state_dict(dict(tensors))

    @contextmanager
    def under_way(self, first_step: int) -> Iterator[None]:
        """Holds the loader and shows progress."""
        place = Placer(self._device, packed=False)
        self._loader = self._data.loader(self._config, self._launch, self._consumed_samples, place)
        stream = sys.stderr if self._launch.rank == 0 else None
        self._progress = Progress(stream, self._total_steps, first_step, "measuring")
        with self._loader, self._progress:
            yield

    def step(self, step: int, stop_requested: bool) -> MeasuredBatch:
        """Sums the masks' gradient of the loader's next batch over ranks."""
        gradients = []
        for micro in next(self._loader).micro_batches:
            assert isinstance(micro, PlacedBatch)
            on_device = micro.arrived()
            assert isinstance(on_device, MicroBatch) and on_device.labels is not None
            gradients.append(mask_gradient(self._model, on_device.labels, **on_device.inputs()))
        stops = torch.tensor([float(stop_requested)], device=self._device)
        total = torch.cat([torch.stack(gradients).sum(0), stops])
        dist.all_reduce(total)
        return MeasuredBatch(total)

    def record(self, steps_done: int, outcome: MeasuredBatch) -> None:
        """Adds a batch to the meter."""
        self._meter.add(outcome.gradient)
        self._progress.advance({})
        interval = self._config.training.log_interval
        if steps_done % interval == 0 or steps_done == self._total_steps:
            self._progress.print_without_bar(steps_done, {"counted batches": self._meter.batches})

    def evaluate(self, steps_done: int) -> bool:
        """Does nothing: the model does not change."""
        return False

    def cause_of_divergence(self) -> str | None:
        """Names the model that is measured: nothing else is computed with."""
        return f"{self._config.teacher.model_name_or_path} gives gradients that are not finite"

    def paused(self) -> AbstractContextManager[None]:
        """Pauses nothing: no rate is shown."""
        return nullcontext()

    def finish(self) -> None:
        """Reorders, checks and exports, on rank 0."""
        if self._launch.rank == 0:
            self._export(self._model.cpu(), self._meter.importances())
        dist.barrier()

    def _export(self, model: ElasticForRelationsAndMaskedLM, importances: ElementValues) -> None:
        sizes = model.config.sizes
        sparsity_map = build_sparsity_map(
            importances.heads, importances.neurons, sizes, self._config.sparsify.sparsities
        )
        difference = self._reorder(model, importances)
        model.config.sparsity_map = model.bert.config.sparsity_map = sparsity_map
        target = Path(self._config.export_folder(SPARSIFIED))
        export_elastic(model, target, self._data.tokenizer)
        draw_sub_models(sizes, sparsity_map, self._folder.sub_models)
        summary = SparsificationSummary(
            model=self._config.teacher.model_name_or_path,
            world_size=self._launch.world_size,
            batches=self._meter.batches,
            difference_after_reordering=difference,
            gmac={name: model.config.shape(name).gmac(sizes.head_size) for name in sparsity_map},
            export=str(target),
        )
        summary.write(self._folder.summary)
        _log.info("exported to %s; picture in %s", target, self._folder.sub_models)

    def _reorder(self, model: ElasticForRelationsAndMaskedLM, importances: ElementValues) -> float:
        """Reorders in place; returns the largest change of a final hidden state.

        Raises:
            RuntimeError: the model computes something else than before.
        """
        sample = torch.zeros(1, dtype=torch.int64).numpy()
        probe = self._data.collate(self._data.pairs.draw(sample, sample), sample)
        inputs, real = probe.inputs(), probe.attention_mask
        with torch.no_grad():
            before = model.bert(**inputs).last_hidden_state[real]
            reorder(model, element_orders(importances))
            after = model.bert(**inputs).last_hidden_state[real]
        difference = float((after - before).abs().max())
        # Of states beyond one, the share of their size: float32 has seven digits.
        if not difference <= _SAME_FUNCTION * max(1.0, float(before.abs().max())):
            raise RuntimeError(f"reordering changed hidden states by {difference:.1e}")
        return difference

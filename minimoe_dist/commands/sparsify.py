"""``minimoe-dist sparsify``: importances of a BERT's elements, its reordering and its sub-models.

The masked-LM loss of a share of the corpus, spread over ranks, says how much each head, neuron and
hidden dimension matters. The model is then reordered, which does not change what it computes, and
exported with the map of its sub-models, from which sparse students start.
"""

import json
import math
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor

from ..checkpoints.export import export_elastic
from ..checkpoints.tensors import save_tensors
from ..config import RunConfig
from ..config.changes import changed_options, in_words
from ..config.checks import SPARSIFIED
from ..config.commands import SparsifyOptions
from ..data.batches import MicroBatch
from ..data.loader import StepBatch
from ..data.placing import PlacedBatch, Placer
from ..errors import UserError
from ..exit_status import ExitStatus
from ..models.elastic import ElementValues
from ..models.elastic_build import load_masked_lm
from ..models.elastic_mlm import ElasticForMaskedLM
from ..models.elastic_surgery import element_orders, reorder
from ..models.importance import ImportanceMeter, mask_gradient
from ..models.submodel_picture import draw_sub_models
from ..models.submodels import build_sparsity_map
from ..recipes.corpora import RunData, open_data
from ..runs.folder import RunFolder
from ..runs.summaries import SparsificationSummary
from ..runtime import Launch, StopRequest, logger
from ..train.agreement import decided_by_rank_0
from ..train.scope import only_run_in, started

_SAME_FUNCTION = 1e-5
_log = logger("sparsify")


def run(options: SparsifyOptions, launch: Launch) -> int:
    """Sparsifies the teacher of the recipe's first stage.

    Returns:
        0 when done, 75 after a requested stop (saved; start again to go on).
    """
    config = options.stages[0]
    parallel = config.parallel
    with (
        started(
            launch, use_cpu=parallel.use_cpu, timeout_seconds=parallel.timeout_seconds
        ) as scope,
        only_run_in(Path(config.output_dir)),
    ):
        status = _Sparsification(config, launch, scope.device).to_the_end(scope.stop)
        if status == ExitStatus.STOPPED:
            scope.stop.ignore_from_now_on()
        return status


class _Sparsification:
    """A model, a corpus, and what is known of the elements so far."""

    def __init__(self, config: RunConfig, launch: Launch, device: torch.device) -> None:
        self.config = config
        self.launch = launch
        self.device = device
        self.folder = RunFolder(Path(config.output_dir))
        self.data: RunData = open_data(config)
        self.model = load_masked_lm(config.teacher.model_name_or_path).to(device)
        self.model.requires_grad_(False)
        self.meter = ImportanceMeter(self.model.config.sizes)
        batch = config.global_batch_size(launch.world_size)
        samples = config.sparsify.fraction * self.data.pairs.num_samples
        self.total_steps = config.training.max_steps or max(1, math.ceil(samples / batch))
        self.step, self.consumed_samples = self._resume()

    def to_the_end(self, stop: StopRequest) -> int:
        """Measures what is left, reorders, exports."""
        training = self.config.training
        place = Placer(self.device, packed=False)
        with self.data.loader(self.config, self.launch, self.consumed_samples, place) as loader:
            steps = range(self.step, self.total_steps)
            for step, batch in zip(steps, loader, strict=False):
                stops = self._measure(batch, stop.requested)
                self.step, self.consumed_samples = step + 1, loader.consumed_samples
                if self.step % training.log_interval == 0 or self.step == self.total_steps:
                    _log.info("batch %d of %d", self.step, self.total_steps)
                if stops or self.step % training.save_interval == 0:
                    self._save()
                if stops:
                    _log.info("stopped at batch %d of %d", self.step, self.total_steps)
                    return ExitStatus.STOPPED
        self._save()
        self._finish(self.meter.importances())
        return ExitStatus.DONE

    def _measure(self, batch: StepBatch, stop_requested: bool) -> bool:
        """Counts a batch of all ranks; whether any rank was asked to stop."""
        gradients = []
        for micro in batch.micro_batches:
            assert isinstance(micro, PlacedBatch)
            on_device = micro.arrived()
            assert isinstance(on_device, MicroBatch) and on_device.labels is not None
            gradients.append(mask_gradient(self.model, on_device.labels, **on_device.inputs()))
        stops = torch.tensor([float(stop_requested)], device=self.device)
        total = torch.cat([torch.stack(gradients).sum(0), stops])
        dist.all_reduce(total)
        self.meter.add(total[:-1])
        return bool(total[-1] > 0)

    @property
    def _state_path(self) -> Path:
        return self.folder.importances

    def _facts(self) -> dict[str, Any]:
        return {
            **self.config.model_dump(mode="json"),
            "global_batch_size": self.config.global_batch_size(self.launch.world_size),
            "total_steps": self.total_steps,
            "corpora": self.data.identities,
        }

    def _save(self) -> None:
        """One file, so that it is whole or the one before: all ranks hold the same meter."""
        if self.launch.rank == 0:
            progress = {
                "step": self.step,
                "consumed_samples": self.consumed_samples,
                "facts": self._facts(),
            }
            text = torch.tensor(list(json.dumps(progress).encode()), dtype=torch.uint8)
            save_tensors({**self.meter.state_dict(), "progress": text}, self._state_path)

    def _saved(self) -> dict[str, Tensor] | None:
        """What an earlier start left; on rank 0."""
        if not self._state_path.is_file() or self.config.resume != "auto":
            return None
        try:
            return load_file(self._state_path)
        except Exception as error:  # safetensors has errors of its own
            _log.warning("%s: unreadable (%s); starting anew", self._state_path, error)
            return None

    def _resume(self) -> tuple[int, int]:
        """Batches and samples counted before, the same on every rank."""
        state = decided_by_rank_0(self._saved)
        if state is None:
            return 0, 0
        progress = json.loads(bytes(state.pop("progress").tolist()))
        changes = changed_options(progress["facts"], self._facts())
        if changes and not self.config.allow_changed_options:
            raise UserError(
                f"{self._state_path}: options changed since ({in_words(changes)}): give "
                "--allow_changed_options to go on with the new ones, or --resume never"
            )
        self.meter.load_state_dict(state)
        _log.info("resumed from %s at batch %d", self._state_path, progress["step"])
        return progress["step"], progress["consumed_samples"]

    def _finish(self, importances: ElementValues) -> None:
        """Reorders, checks and exports, on rank 0."""
        if self.launch.rank == 0:
            model = self.model.cpu()
            sizes = model.config.sizes
            sparsity_map = build_sparsity_map(
                importances.heads, importances.neurons, sizes, self.config.sparsify.sparsities
            )
            difference = self._reorder(model, importances)
            model.config.sparsity_map = model.bert.config.sparsity_map = sparsity_map
            target = self.folder.export(SPARSIFIED + self.config.model_suffix)
            export_elastic(model, target, self.data.tokenizer)
            draw_sub_models(sizes, sparsity_map, self.folder.sub_models)
            summary = SparsificationSummary(
                model=self.config.teacher.model_name_or_path,
                world_size=self.launch.world_size,
                batches=self.meter.batches,
                difference_after_reordering=difference,
                gmac={
                    name: model.config.shape(name).gmac(sizes.head_size) for name in sparsity_map
                },
                export=str(target),
            )
            summary.write(self.folder.summary)
            _log.info("exported to %s; picture in %s", target, self.folder.sub_models)
        dist.barrier()

    def _reorder(self, model: ElasticForMaskedLM, importances: ElementValues) -> float:
        """Reorders in place; returns the largest change of a final hidden state.

        Raises:
            RuntimeError: the model computes something else than before.
        """
        first = torch.zeros(1, dtype=torch.int64).numpy()
        probe = self.data.collate(self.data.pairs.draw(first, first), first)
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

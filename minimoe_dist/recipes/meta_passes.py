"""Measures a run's passes without numbers: real modules on the meta device, and their tensors.

Nothing is loaded and nothing computed: floating-point tensors are of the meta device, which have a
shape and no memory. Masks and what is counted from them are real, since passes over padded batches
ask for their values; a router's choice is none of its logits but the experts in turn.

These are the passes operator by operator. The graphs of ``torch.compile`` keep about a tenth less
for their backward pass.
"""

import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from ..config import RunConfig
from ..config.model_types import Learns, Students
from ..data.packed import PackedBatch
from ..data.row_counts import most_predicted, rows_for
from ..encoder_families import ENCODER_FAMILIES
from ..models.auto import AutoConfig
from ..models.foreign import as_student
from ..models.pretrained import described_config, empty_encoder
from ..models.teacher import RelationTeacher, cut_config, signals_of
from ..models.tinybert import state_teacher_of
from ..planning.amounts import Amount, tensors
from ..planning.passes import Batch, PassMemory
from ..planning.sizes import Exports, model_json, student_json
from ..train.objectives import Batch as TensorBatch
from ..train.objectives import Objective, inputs_of, measure
from .model_types import make_objective, student_class
from .random_batches import make_micro_batches


class MetaPasses:
    """The passes of a run, as plans ask for them (:class:`~minimoe_dist.planning.passes.Passes`).

    Args:
        config: the run.
        to_come: models that an earlier stage will leave.
    """

    def __init__(self, config: RunConfig, to_come: Exports) -> None:
        self._config = config
        name = config.teacher.model_name_or_path
        self._teacher = model_json(name, "teacher.model_name_or_path", to_come)
        self._students = [student_json(config, student, to_come) for student in config.students]
        self._teach_once = cache(self._teach)
        self.student = cache(self._student)

    def teacher(self, batch: Batch, dtype: str) -> PassMemory:
        """Returns the memory of the teacher's pass."""
        return self._teach_once(batch, dtype)[2]

    def _teach(self, batch: Batch, dtype: str) -> tuple[Objective, Any, PassMemory]:
        objective = make_objective(self._config, self._make_teacher(batch.packed, dtype))
        tensor_batch = self._batch(batch)
        live = _LiveTensors()
        with live:
            targets = objective.teach(tensor_batch)
        return objective, targets, live.memory()

    def _student(
        self, index: int, batch: Batch, dtype: str, teacher_dtype: str, keeps_gradients: bool
    ) -> PassMemory:
        objective, targets, _ = self._teach_once(batch, teacher_dtype)
        student = self._make_student(index, dtype)
        if not keeps_gradients:
            for parameter in student.parameters():
                parameter.register_post_accumulate_grad_hook(_forget_gradient)
        tensor_batch = self._batch(batch)
        inputs = inputs_of(tensor_batch) | {"sample_ids": tensor_batch.sample_ids, "noise_seed": 0}
        live = _LiveTensors()
        with live:
            sub_models = student.config.sub_models
            measured = measure(objective, student, sub_models, inputs, tensor_batch, targets)
            sums = [measured.sums, *(router.probability_sum for router in measured.routers)]
            torch.cat([total.flatten() for total in sums]).sum().backward()
        return live.memory()

    def _make_teacher(self, packed: bool, dtype: str) -> nn.Module | None:
        config = self._config
        if not config.objective.relation_weight:
            return None
        values = dict(self._teacher)
        whole = AutoConfig.for_model(values.pop("model_type"), **values)
        layer = whole.num_hidden_layers
        if config.kind.learns is Learns.RELATIONS and config.teacher.relation_layer != -1:
            layer = config.teacher.relation_layer
        cut = cut_config(whole, layer)
        # 8-bit maps read and leave numbers of 16 bits.
        model: Any = empty_encoder(cut, getattr(torch, dtype.replace("float8", "bfloat16")))
        if config.kind.learns is Learns.STATES:
            return state_teacher_of(model)
        with_states = config.learns_last_states
        is_encoder = model.config.model_type in ENCODER_FAMILIES
        if packed and is_encoder and described_config(whole).runs_as_students:
            model = as_student(model, with_states)
        return RelationTeacher(signals_of(model, with_states), whole, layer, with_states)

    def _make_student(self, index: int, dtype: str) -> Any:
        model_class = student_class(self._config)
        values = self._students[index]
        config = self._config
        if config.kind.students is not Students.ENCODER:
            projects = values["relation_projections"] and config.learns_relations
        else:
            experts = (values.get(f"{block}_experts", 1) for block in ("attention", "feedforward"))
            projects = config.projects_relations(*experts)
        values |= {"relation_projections": projects}
        values |= {"teacher_hidden_size": self._teacher["hidden_size"]}
        if config.learns_last_states:
            values |= {"state_width": self._teacher["hidden_size"]}
        with _META:
            return model_class(model_class.config_class(**values)).to(getattr(torch, dtype)).train()

    def _batch(self, batch: Batch) -> TensorBatch:
        masked = bool(self._config.objective.mlm_weight)
        if batch.packed:
            return _packed(batch, masked)
        micro = make_micro_batches(
            samples=batch.samples,
            length=batch.length,
            filled=batch.filled,
            accumulation=1,
            vocabulary=self._teacher["vocab_size"],
            masked=masked,
        )[0]
        micro.sample_ids = micro.sample_ids.to(_META)  # and so all hashes of dropout
        return micro


_META = torch.device("meta")


def _packed(batch: Batch, masked: bool) -> PackedBatch:
    samples, longest = batch.samples, batch.length
    rows = rows_for(round(batch.tokens), batch.positions)
    predictions = samples * most_predicted(longest) if masked else 0
    numbers = 4 * (samples + rows) + 2 * predictions
    nothing = torch.empty(numbers, dtype=torch.int32, device=_META)
    return PackedBatch(nothing, samples, rows, predictions, longest, round(batch.tokens))


def _forget_gradient(parameter: Tensor) -> None:
    parameter.grad = None


class _LiveTensors(TorchDispatchMode):
    """Follows the storages that operators make until they are freed.

    Storages from before are no part of it.
    """

    def __init__(self) -> None:
        super().__init__()
        self._storages: dict[int, weakref.ref[Any]] = {}
        self._live = Amount()
        self._peaks: dict[str, Amount] = dict.fromkeys(("total", "small", "large"), Amount())

    def memory(self) -> PassMemory:
        """Returns the peaks so far, and what is live."""
        return PassMemory(tuple(self._peaks.values()), self._live)

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        for tensor in inputs:
            self._follow(tensor, Amount())
        result = _run(func, args, dict(kwargs or {}), inputs)
        for leaf in result if isinstance(result, tuple | list) else (result,):
            if isinstance(leaf, Tensor):
                self._follow(leaf, tensors(leaf.untyped_storage().nbytes()))
        return result

    def _follow(self, tensor: Tensor, amount: Amount) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._storages:
            return

        def free(_: Any) -> None:
            del self._storages[key]
            self._live -= amount

        self._storages[key] = weakref.ref(storage, free)
        self._live += amount
        for kind, highest in self._peaks.items():
            if getattr(self._live, kind) > getattr(highest, kind):
                self._peaks[kind] = self._live


def _run(
    func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any], inputs: Sequence[Tensor]
) -> Any:
    """Runs an operator; the result is on the meta device if of floating point or made of such."""
    if func is torch.ops.aten.argmax.default:
        rows, experts = inputs[0].shape
        return torch.arange(rows) % experts
    if any(tensor.is_meta for tensor in inputs):
        if not all(tensor.is_meta for tensor in inputs):
            args, kwargs = tree_map_only(Tensor, _on_meta, (tuple(args), kwargs))
        if kwargs.get("device") is not None:
            kwargs["device"] = _META
        return func(*args, **kwargs)
    if inputs and not inputs[0].is_floating_point() and kwargs.get("device") == _META:
        kwargs["device"] = torch.device("cpu")  # masks that follow the hidden states
    result = func(*args, **kwargs)
    if isinstance(result, Tensor) and result.is_floating_point():
        return _on_meta(result)
    return result


def _on_meta(tensor: Tensor) -> Tensor:
    return tensor if tensor.is_meta else tensor.to(_META)

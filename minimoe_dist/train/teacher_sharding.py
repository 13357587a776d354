"""Shares teachers out over ranks: each holds 1/n of the weights, however students are laid out.

A teacher group is n consecutive ranks that hold one teacher together; there are (ranks / n) of
them. ``zero3``: DeepSpeed's ZeRO-3 keeps a part of each parameter on each rank of the group and
gathers a layer's parameters when the layer runs. ``tensor``: torch's tensor parallelism cuts each
layer's maps, so that each rank computes with its own columns and heads. In both the ranks of a
group go through the teacher together, so each of them must ask for signals equally often.

Weights go from safetensors into place slice by slice or parameter by parameter: no rank holds the
whole teacher at any time. It is frozen: without gradients, optimizer state or DDP.

Shapes: B samples and S positions of this rank's batch, H the teacher's width, n ranks a group.
"""

import contextlib
import ctypes
import math
from collections.abc import Sequence
from typing import Any, Literal

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.runtime.zero.parameter_offload import DeepSpeedZeRoOffload
from deepspeed.utils.timer import NoopTimer
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    RowwiseParallel,
    parallelize_module,
)

from ..encoder_families import ENCODER_FAMILIES
from ..models.pretrained import encoder_dtype
from ..models.teacher import (
    CutEncoder,
    HeardEncoder,
    RelationTeacher,
    UnfilledTeacher,
    unfilled_teacher,
)
from ..runtime import logger
from .agreement import decided_by_rank_0
from .engine import initialize_communication, quiet_deepspeed

_log = logger("teacher")

ShardedLayout = Literal["zero3", "tensor"]

# Smaller parameters (biases, LayerNorms) stay whole on every rank once they were gathered: each
# gathering costs a round trip.
_KEPT_WHOLE = 16_384
_M_MMAP_THRESHOLD, _MAPPED_BYTES = -3, 1 << 20  # the first as in malloc.h


def load_sharded_teacher(
    path: str,
    *,
    layout: ShardedLayout,
    parallel_size: int | None = None,
    offload: bool = False,
    relation_layer: int = -1,
    with_states: bool = False,
    dtype: torch.dtype | str = "float32",
    device: torch.device | str = "cpu",
) -> RelationTeacher:
    """Loads a teacher that groups of ranks hold together; a collective.

    Args:
        path: folder, ``package:NAME``, or name on the Hugging Face hub; with safetensors.
        layout: how the weights are shared out.
        parallel_size: n, ranks of a group; None is all ranks.
        offload: ``zero3`` only: the parts wait in the host's memory.
        relation_layer: layer from 1; -1 is the last one.
        with_states: give the states behind it too.
        dtype: as ``load_teacher`` takes it; "auto" is what suits rank 0.
        device: where it computes.

    Returns:
        A teacher whose call is a collective of its group; the signals are those of the replicated
        teacher but for the order of sums.

    Raises:
        UserError: as ``load_teacher``.
    """
    device = torch.device(device)
    size = dist.get_world_size() if parallel_size is None else parallel_size
    assert dist.get_world_size() % size == 0, (dist.get_world_size(), size)
    # "auto" depends on the processor, and what ranks exchange must be of one type.
    chosen = decided_by_rank_0(lambda: encoder_dtype(dtype, device))
    unfilled = unfilled_teacher(
        path, relation_layer=relation_layer, with_states=with_states, dtype=chosen
    )
    group, _ = dist.new_subgroups(size)
    if layout == "tensor":
        teacher = _tensor_parallel(unfilled, group, device)
    else:
        teacher = _zero3(unfilled, group, device, offload)
    teacher.freeze()
    total_bytes = sum(_whole_numel(p) * p.element_size() for p in teacher.parameters())
    _log.info(
        "%s: %s over %d of %d ranks, %.1f of %.1f MB of weights on this one",
        path, layout, size, dist.get_world_size(), held_bytes(teacher) / 1e6, total_bytes / 1e6,
    )  # fmt: skip
    return teacher


def held_bytes(teacher: nn.Module) -> int:
    """Counts the bytes of a teacher's weights that this rank holds between two passes."""
    return sum(_held_bytes(parameter) for parameter in teacher.parameters())


def _held_bytes(parameter: nn.Parameter) -> int:
    if isinstance(parameter, DTensor):
        return parameter.to_local().nbytes
    if hasattr(parameter, "ds_tensor"):  # what ZeRO-3 left here, and what it has gathered
        return int(parameter.ds_tensor.nbytes) + parameter.nbytes
    return parameter.nbytes


def _whole_numel(parameter: nn.Parameter) -> int:
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def _zero3(
    unfilled: UnfilledTeacher, group: dist.ProcessGroup, device: torch.device, offload: bool
) -> RelationTeacher:
    """Cuts parameter by parameter: the group's first rank reads one, all get it and keep 1/n."""
    initialize_communication()
    on_cpu = device.type == "cpu"
    if on_cpu:
        _return_freed_memory()
    teacher, reads = unfilled.teacher, dist.get_rank(group) == 0
    path_of = {module: path for path, module in teacher.named_modules()}
    with quiet_deepspeed():
        # Children before parents: Init takes whatever it finds below a module.
        for module, path in reversed(path_of.items()):
            parameters = dict(module.named_parameters(recurse=False))
            for name, parameter in parameters.items():
                filled = torch.empty_like(parameter, device=device)
                if reads:
                    unfilled.weights.copy_into(filled, unfilled.names[_joined(path, name)])
                module.register_parameter(name, nn.Parameter(filled, requires_grad=False))
            if parameters:
                deepspeed.zero.Init(
                    module=module,
                    data_parallel_group=group,
                    # It would replace torch's linear map for students and teachers alike.
                    mem_efficient_linear=False,
                    remote_device="cpu" if offload else None,
                    pin_memory=offload and not on_cpu,
                    dtype=filled.dtype,
                )
        teacher.to(device)  # buffers
        _register_parameters_read_elsewhere(teacher)
        layer = sum(map(_whole_numel, teacher.parameters())) // max(1, teacher.layers_run)
        # Its hooks on the modules keep it alive.
        DeepSpeedZeRoOffload(
            teacher,
            NoopTimer(),
            None,
            # On CPUs gathering ahead computes nothing meanwhile: it took twice the time.
            prefetch_bucket_size=0 if on_cpu else layer,
            max_reuse_distance=0,
            max_live_parameters=2 * layer,
            param_persistence_threshold=_KEPT_WHOLE,
        )
    return teacher


def _register_parameters_read_elsewhere(teacher: RelationTeacher) -> None:
    """Names those that a module reads of another one, whose own call would gather them."""
    family = ENCODER_FAMILIES.get(teacher.config.model_type)
    if family is None or not isinstance(teacher.signals, CutEncoder | HeardEncoder):
        return
    encoder = teacher.signals.encoder
    for path, reader in family.read_by.items():
        deepspeed.zero.register_external_parameter(
            encoder.get_submodule(reader), encoder.get_parameter(path)
        )


def _return_freed_memory() -> None:
    """Lets the C library map large blocks each on their own, to be returned when they are freed.

    It stops doing so after the first, and then parameters that come and go leave a heap full of
    holes: measured, larger than the whole teacher.
    """
    with contextlib.suppress(OSError, AttributeError):  # other C libraries
        ctypes.CDLL("libc.so.6").mallopt(_M_MMAP_THRESHOLD, _MAPPED_BYTES)


def _tensor_parallel(
    unfilled: UnfilledTeacher, group: dist.ProcessGroup, device: torch.device
) -> RelationTeacher:
    """Cuts the maps by columns and rows (Megatron-LM, Shoeybi et al. 2019, section 3)."""
    teacher, size = unfilled.teacher, dist.get_world_size(group)
    assert isinstance(teacher.signals, CutEncoder | HeardEncoder), type(teacher.signals).__name__
    assert teacher.config.num_attention_heads % size == 0, teacher.config.num_attention_heads
    assert teacher.config.intermediate_size % size == 0, teacher.config.intermediate_size
    mesh = DeviceMesh.from_group(group, device.type)
    # None: every rank takes its own part, nothing is sent.
    parallelize_module(teacher, mesh, _styles(teacher), src_data_rank=None)
    for module in teacher.modules():
        if hasattr(module, "all_head_size"):
            _keep_local_heads(module, size)
    for path, module in teacher.named_modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            filled = torch.empty_like(parameter, device=device)
            local_part, dim, start = _local_part(filled, dist.get_rank(group))
            unfilled.weights.copy_into(local_part, unfilled.names[_joined(path, name)], dim, start)
            module.register_parameter(name, nn.Parameter(filled, requires_grad=False))
    teacher.to(device)  # buffers
    teacher.signals = GroupSignals(teacher.signals, group)
    return teacher


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _keep_local_heads(attention: Any, size: int) -> None:
    attention.num_attention_heads //= size
    attention.all_head_size //= size


def _local_part(parameter: Tensor, rank: int) -> tuple[Tensor, int, int]:
    """Returns what a rank holds of a parameter, the dimension that is cut, and where it starts."""
    if not isinstance(parameter, DTensor):
        return parameter, 0, 0
    local = parameter.to_local()
    (placement,) = parameter.placements
    if not isinstance(placement, Shard):
        return local, 0, 0
    return local, placement.dim, rank * local.shape[placement.dim]


def _styles(teacher: nn.Module) -> dict[str, ParallelStyle]:
    """Returns how each map is cut: by heads and neurons, then back; tables by the hidden size."""
    styles: dict[str, ParallelStyle] = {}
    for name, _ in teacher.named_modules():
        if name.endswith(("word_embeddings", "position_embeddings")):
            styles[name] = ColwiseParallel(output_layouts=Replicate())
        elif name.endswith(("query", "key", "value", "intermediate.dense")):
            styles[name] = ColwiseParallel()
        elif name.endswith("output.dense"):
            styles[name] = RowwiseParallel()
    return styles


class GroupSignals(nn.Module):
    """Computes signals of the batches of all ranks of a group, and gives each rank its own.

    Args:
        signals: gives the columns of this rank, [B, S, H/n] three times; last states whole.
        group: the ranks that hold the teacher together.
    """

    def __init__(self, signals: nn.Module, group: dist.ProcessGroup) -> None:
        super().__init__()
        self.signals = signals
        self._group = group
        self._rank, self._size = dist.get_rank(group), dist.get_world_size(group)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None
    ) -> tuple[Tensor, ...]:
        """Returns queries, keys and values, each [B, S, H]; a collective of the group.

        Batches run one after the other, each at its own size: padding stays as it is, and only one
        batch's activations are there at a time.
        """
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(input_ids)
        batches = self._gather(torch.stack([input_ids, attention_mask.long(), token_type_ids]))
        columns = [
            torch.stack(self._columns(self.signals(ids, mask.bool(), segments)))
            for ids, mask, segments in batches
        ]  # [3 or 4, B, S, H/n] of each rank's batch
        return tuple(self._exchange(columns))

    def _columns(self, signals: Sequence[Tensor]) -> list[Tensor]:
        """Returns this rank's columns of all: of states, which each rank of the group has whole."""
        width = signals[0].shape[-1]
        return [
            one if one.shape[-1] == width else one.narrow(-1, self._rank * width, width)
            for one in signals
        ]

    def _gather(self, batch: Tensor) -> list[Tensor]:
        """Gathers the int64 [3, B, S] of every rank of the group; their sizes may differ."""
        size = torch.tensor(batch.shape[1:], device=batch.device)
        sizes = [torch.empty_like(size) for _ in range(self._size)]
        dist.all_gather(sizes, size, group=self._group)
        shapes = [(3, *size.tolist()) for size in sizes]
        longest = max(map(math.prod, shapes))
        padded = nn.functional.pad(batch.flatten(), (0, longest - batch.numel()))
        batches = [torch.empty_like(padded) for _ in range(self._size)]
        dist.all_gather(batches, padded, group=self._group)
        return [
            batch[: math.prod(shape)].view(shape)
            for batch, shape in zip(batches, shapes, strict=True)
        ]

    def _exchange(self, columns: list[Tensor]) -> Tensor:
        """Exchanges this rank's columns of all batches for all of its own: [n, B, S, H]."""
        sent = torch.cat([part.flatten() for part in columns])
        own_columns = columns[self._rank]
        received = own_columns.new_empty(self._size, *own_columns.shape)
        dist.all_to_all_single(
            received.view(-1),
            sent,
            [own_columns.numel()] * self._size,
            [part.numel() for part in columns],
            group=self._group,
        )
        return received.permute(1, 2, 3, 0, 4).flatten(3)

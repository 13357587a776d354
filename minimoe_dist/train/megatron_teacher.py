"""Runs a MegatronBert teacher by megatron-core's own BertModel, whole or in tensor-parallel parts.

The other implementations are transformers' and this package's; this one is the model that such
teachers were trained with. Attention goes through PyTorch's scaled dot product: megatron-core's
own, without Transformer Engine, computes on GPUs alone and keeps all scores. LayerNorms are
PyTorch's, since megatron-core would take apex's wherever it can be imported, on CPUs too.

Shapes: B samples of S positions, H the teacher's width, n ranks that hold one teacher together.
"""

import copy
import math
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN

from ..errors import UserError
from ..megatron_files.naming import LAYER, QKV, QKV_NAMES, WORDS, hugging_face_name, kind_of
from ..models.pretrained import encoder_dtype
from ..models.taps import Tap, listening
from ..models.teacher import RelationTeacher, UnfilledTeacher, unfilled_teacher
from ..runtime import logger
from .agreement import decided_by_rank_0
from .teacher_sharding import GroupSignals, held_bytes

_log = logger("teacher")
_ENCODER = "bert."  # before an encoder's names in a whole model
_READ_OF_RELATION_LAYER = ("input_layernorm", QKV)
# Transformer Engine's, which is not used here: megatron-core refuses some values, and sets others.
# The last one it deletes.
_VARIABLES = ("NVTE_FLASH_ATTN", "NVTE_FUSED_ATTN", "NVTE_UNFUSED_ATTN", "NCCL_COLLNET_ENABLE")


def load_megatron_teacher(
    path: str,
    *,
    parallel_size: int = 1,
    relation_layer: int = -1,
    with_states: bool = False,
    dtype: torch.dtype | str = "float32",
    device: torch.device | str = "cpu",
    timeout_seconds: float = 600.0,
) -> RelationTeacher:
    """Loads a MegatronBert that megatron-core runs; a collective.

    Args:
        path: a Megatron checkpoint's folder, or a Hugging Face folder with safetensors.
        parallel_size: n; each rank reads and holds its part.
        relation_layer: layer from 1; -1 is the last one.
        with_states: give the states behind it too.
        dtype: as ``load_teacher`` takes it; "auto" is what suits rank 0.
        device: where it computes.
        timeout_seconds: limit of a collective of its ranks; whole minutes, rounded up.

    Returns:
        A teacher whose call is a collective of n ranks where these are several.

    Raises:
        UserError: as ``load_teacher``, or it is no MegatronBert.
    """
    device = torch.device(device)
    chosen = decided_by_rank_0(lambda: encoder_dtype(dtype, device))
    unfilled = unfilled_teacher(
        path, relation_layer=relation_layer, with_states=with_states, dtype=chosen
    )
    teacher = unfilled.teacher
    if teacher.config.model_type != "megatron-bert":
        raise UserError(
            f"teacher.implementation: megatron runs megatron-bert, and {path} is of type "
            f"{teacher.config.model_type}; use transformers"
        )
    with _without_variables(), warnings.catch_warnings():
        # Each of its modules that would use apex or Transformer Engine says that it has neither.
        warnings.simplefilter("ignore", UserWarning)
        group = _tensor_parallel_group(parallel_size, timeout_seconds)
        model = _empty_model(
            teacher.config, teacher.relation_layer, with_states, chosen, parallel_size
        )
    _fill(model, unfilled, dist.get_rank(group))
    signals: nn.Module = _MegatronSignals(model, with_states)
    teacher.signals = GroupSignals(signals, group) if parallel_size > 1 else signals
    teacher.to(device, chosen)
    teacher.freeze()
    _log.info(
        "%s: by megatron-core, over %d of %d ranks, %.1f MB of weights on this one",
        path, parallel_size, dist.get_world_size(), held_bytes(teacher) / 1e6,
    )  # fmt: skip
    return teacher


@contextmanager
def _without_variables() -> Iterator[None]:
    """Hides variables that megatron-core reads and changes while it makes a model."""
    before = {name: os.environ.pop(name) for name in _VARIABLES if name in os.environ}
    try:
        yield
    finally:
        for name in _VARIABLES:
            os.environ.pop(name, None)
        os.environ.update(before)


def _tensor_parallel_group(size: int, timeout_seconds: float) -> dist.ProcessGroup:
    """Returns the n consecutive ranks of this one; megatron-core keeps them for the process."""
    from megatron.core import parallel_state

    # An earlier stage's teacher may have made them: new ones would be there beside the old ones.
    is_there = parallel_state.model_parallel_is_initialized()
    if not is_there or parallel_state.get_tensor_model_parallel_world_size() != size:
        parallel_state.destroy_model_parallel()
        parallel_state.initialize_model_parallel(
            size,
            create_gloo_process_groups=False,
            distributed_timeout_minutes=math.ceil(timeout_seconds / 60),
        )
    group: dist.ProcessGroup = parallel_state.get_tensor_model_parallel_group()
    return group


def _empty_model(
    config: PreTrainedConfig, layers: int, with_norm: bool, dtype: torch.dtype, size: int
) -> Any:
    """Makes this rank's part of the first layers, on CPU, with numbers of no meaning.

    Args:
        config: of the whole model.
        layers: how many.
        with_norm: with the LayerNorm behind all layers too.
        dtype: of its parameters.
        size: n.
    """
    from megatron.core.models.bert.bert_layer_specs import bert_layer_local_spec
    from megatron.core.models.bert.bert_model import BertModel
    from megatron.core.transformer.torch_norm import WrappedTorchNorm
    from megatron.core.transformer.transformer_config import TransformerConfig

    options = TransformerConfig(
        num_layers=layers,
        hidden_size=config.hidden_size,
        num_attention_heads=config.num_attention_heads,
        ffn_hidden_size=config.intermediate_size,
        layernorm_epsilon=config.layer_norm_eps,
        activation_func=ACT2FN[config.hidden_act],
        hidden_dropout=0.0,
        attention_dropout=0.0,
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
        tensor_model_parallel_size=size,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=dtype == torch.bfloat16,
        fp16=dtype == torch.float16,
        use_cpu_initialization=True,
        perform_initialization=False,
    )
    layer_spec = copy.deepcopy(bert_layer_local_spec)
    layer_spec.submodules.input_layernorm = WrappedTorchNorm
    layer_spec.submodules.pre_mlp_layernorm = WrappedTorchNorm
    model = BertModel(
        options,
        num_tokentypes=config.type_vocab_size,
        transformer_layer_spec=layer_spec,
        vocab_size=-(-config.vocab_size // size) * size,
        max_sequence_length=config.max_position_embeddings,
        post_process=False,
        add_binary_head=False,
    )
    for layer in model.encoder.layers:
        layer.self_attention.core_attention = _DotProductAttention()
    if with_norm:
        model.encoder.final_layernorm = WrappedTorchNorm(
            options, options.hidden_size, options.layernorm_epsilon
        )
    return model


@torch.no_grad()
def _fill(model: Any, unfilled: UnfilledTeacher, rank: int) -> None:
    """Reads this rank's part of each weight that leads to the relation layer's maps."""
    weights, config = unfilled.weights, unfilled.teacher.config
    is_cut = model.encoder.final_layernorm is None
    last = len(model.encoder.layers) - 1
    head_size = config.hidden_size // config.num_attention_heads
    for name, parameter in model.named_parameters():
        layer = LAYER.fullmatch(name)
        is_last = layer is not None and int(layer[1]) == last
        if layer and is_cut and is_last and layer[2] not in _READ_OF_RELATION_LAYER:
            continue
        kind, target = kind_of(name), hugging_face_name(name).removeprefix(_ENCODER)
        if kind == "by_heads":
            by_heads = parameter.view(-1, 3, head_size, *parameter.shape[1:])
            for number, part_name in enumerate(QKV_NAMES):
                part = parameter.new_empty(by_heads[:, number].shape).flatten(0, 1)
                weights.copy_into(part, target.format(part_name), 0, rank * len(part))
                by_heads[:, number] = part.unflatten(0, (-1, head_size))
        elif kind == "by_output":
            start, rows = rank * len(parameter), len(parameter)
            if name == WORDS:  # rows behind the vocabulary make ranks' parts equal
                rows = max(0, min(rows, config.vocab_size - start))
                parameter[rows:] = 0.0
            if rows:
                weights.copy_into(parameter[:rows], target, 0, start)
        elif kind == "by_input":
            weights.copy_into(parameter, target, 1, rank * parameter.shape[1])
        else:
            weights.copy_into(parameter, target)


class _MegatronSignals(nn.Module):
    """Queries, keys and values of the last layer of a BertModel, which it takes over.

    Args:
        model: of its last layer, the norm before it and its fused map are what else stays.
        with_states: keep that layer whole, and give the states behind it too.
    """

    def __init__(self, model: Any, with_states: bool) -> None:
        super().__init__()
        *before, relation_layer = model.encoder.layers
        attention = relation_layer.self_attention
        self.model, self.with_states = model, with_states
        self._heads: int = attention.num_attention_heads_per_partition
        self._tap = Tap(attention.linear_qkv, False)
        if not with_states:
            model.encoder.layers = nn.ModuleList(before)
            model.encoder.final_layernorm = relation_layer.input_layernorm
            self.query_key_value = attention.linear_qkv

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None
    ) -> tuple[Tensor, ...]:
        """Returns queries, keys and values of this rank's heads, each [B, S, H / n].

        Behind them last states where they are wanted, [B, S, H].
        """
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(input_ids)
        heard: dict[Tap, Tensor] = {}
        with listening([self._tap] if self.with_states else [], heard):
            hidden = self.model(input_ids.long(), attention_mask.long(), token_type_ids.long())
        fused = heard[self._tap] if self.with_states else self.query_key_value(hidden)[0]
        # [B, S, 3 H / n], by heads
        by_heads = fused.transpose(0, 1).unflatten(-1, (self._heads, 3, -1))
        signals = tuple(signal.flatten(2) for signal in by_heads.unbind(-2))
        return (*signals, hidden.transpose(0, 1)) if self.with_states else signals


class _DotProductAttention(nn.Module):
    """PyTorch's scaled dot product as megatron-core calls its attention."""

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor, **_: Any
    ) -> Tensor:
        """Attends.

        Args:
            query: [S, B, heads, head size].
            key: as ``query``.
            value: as ``query``.
            attention_mask: bool [B, 1, S, S], true where query or key is padding.

        Returns:
            [S, B, H / n].
        """
        # Of queries that are padding everything is masked, and a softmax of nothing is no number.
        is_key = ~attention_mask.all(-2, keepdim=True)
        query, key, value = (each.permute(1, 2, 0, 3) for each in (query, key, value))
        context = F.scaled_dot_product_attention(query, key, value, is_key)
        return context.permute(2, 0, 1, 3).flatten(2)

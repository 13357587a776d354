"""The teacher: an encoder cut at its relation layer and frozen.

Of a Hugging Face encoder only what leads to the relation layer's queries, keys and values is loaded
and run: no later layer, no attention or feed-forward of the relation layer itself, no pooler. The
three signals are bit for bit those of the uncut model. Our own students teach too, as assistants:
their signals are those that they were trained to give. Which encoders teach is said in
`encoder_families`.

Where students learn the last states too, these are a fourth signal, and the relation layer runs
wholly.

Shapes: B samples, S positions, H the teacher's width.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from ..encoder_families import ENCODER_FAMILIES, EncoderFamily
from .elastic import ElasticForRelations
from .errors import UserError
from .float8 import multiplies_float8, quantize_maps
from .foreign import as_student
from .megatron.reading import MegatronWeights
from .moebert import MiniMoeForRelations
from .packing import Layout
from .pretrained import (
    described_config,
    empty_encoder,
    encoder_dtype,
    load_encoder,
    open_weights,
    read_encoder_config,
)
from .taps import Tap, listening
from .weights import SlicedWeights

FLOAT8 = "float8"
_MAP_NAMES = {1: ("query_key_value",), 3: ("query", "key", "value")}


class CutEncoder(nn.Module):
    """The layers before a relation layer, then that layer's projections.

    Args:
        encoder: a Hugging Face encoder whose last hidden state is what the projections read.
        maps: of the relation layer: query, key and value, or one map whose thirds they are.
        reads_segments: whether the encoder was trained with segment ids.
    """

    def __init__(self, encoder: nn.Module, maps: Sequence[nn.Module], reads_segments: bool) -> None:
        super().__init__()
        self.encoder = encoder
        self._names = _MAP_NAMES[len(maps)]
        for name, module in zip(self._names, maps, strict=True):
            self.add_module(name, module)
        self.reads_segments = reads_segments

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns queries, keys and values, each [B, S, H]."""
        segments = {"token_type_ids": token_type_ids} if self.reads_segments else {}
        hidden = self.encoder(
            # Some subtract masks, which booleans do not.
            input_ids=input_ids,
            attention_mask=attention_mask.long(),
            **segments,
        ).last_hidden_state
        outputs = [self.get_submodule(name)(hidden) for name in self._names]
        query, key, value = outputs if len(outputs) == 3 else outputs[0].chunk(3, dim=-1)
        return query, key, value


class HeardEncoder(nn.Module):
    """The layers up to a relation layer, run wholly: that layer's projections are listened to.

    Args:
        encoder: a Hugging Face encoder whose last layer is the relation layer.
        maps: of the relation layer, as in :class:`CutEncoder`; parts of the encoder.
        reads_segments: as in :class:`CutEncoder`.
        call: which of a pass's calls of the maps is the relation layer's own, from 0. Layers may
            share them, and attention may ask them for positions afterwards.
    """

    def __init__(
        self, encoder: nn.Module, maps: Sequence[nn.Module], reads_segments: bool, call: int
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.reads_segments = reads_segments
        self._taps = [Tap(module, False, call) for module in maps]

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None
    ) -> tuple[Tensor, ...]:
        """Returns queries, keys, values and the last states, each [B, S, H]."""
        segments = {"token_type_ids": token_type_ids} if self.reads_segments else {}
        heard: dict[Tap, Tensor] = {}
        with listening(self._taps, heard):
            states = self.encoder(
                input_ids=input_ids, attention_mask=attention_mask.long(), **segments
            ).last_hidden_state
        outputs = [heard[tap] for tap in self._taps]
        signals = outputs if len(outputs) == 3 else outputs[0].chunk(3, dim=-1)
        return (*signals, states)


class StudentSignals(nn.Module):
    """A student as a teacher: the signals that it was trained to give.

    On a GPU a Hugging Face encoder teaches as one too, of its own weights: our encoder computes no
    padding.

    Args:
        student: the student.
        with_states: give its last states too.
    """

    def __init__(
        self, student: MiniMoeForRelations | ElasticForRelations, with_states: bool = False
    ) -> None:
        super().__init__()
        self.student = student
        self.with_states = with_states

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None
    ) -> tuple[Tensor, ...]:
        """Returns queries, keys and values, each [B, S, H]; zeros at padding."""
        return self._signals(
            input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
        )

    def packed(
        self, input_ids: Tensor, token_type_ids: Tensor, layout: Layout
    ) -> tuple[Tensor, ...]:
        """Returns queries, keys and values, each [T, H], of a batch that comes packed."""
        return self._signals(input_ids, token_type_ids=token_type_ids, layout=layout)

    def _signals(self, input_ids: Tensor, **inputs: Any) -> tuple[Tensor, ...]:
        if not self.with_states:
            return tuple(self.student(input_ids, **inputs).signals)
        encoded = self.student.encode(input_ids, **inputs)
        signals = self.student.student_output(encoded).signals
        assert signals is not None and encoded.last_hidden_state is not None
        return (*signals, encoded.last_hidden_state)


class FrozenModel(nn.Module):
    """A model that is always in evaluation mode, without gradients."""

    def freeze(self) -> None:
        """Takes gradients and dropout away; to be called once all parts are there."""
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> Self:
        """Stays in evaluation mode, whatever a surrounding module asks for."""
        return super().train(False)


class RelationTeacher(FrozenModel):
    """A frozen teacher of relations.

    Attributes:
        config: configuration of the uncut model.
        num_layers: layers of the uncut model.
        relation_layer: the layer whose projections are the signals, from 1.
        layers_run: whole layers that run before the projections, which decide the cost.
        hidden_size: width of each signal.
        gives_states: whether the last states are a fourth signal.
    """

    def __init__(
        self,
        signals: nn.Module,
        config: PreTrainedConfig,
        relation_layer: int,
        gives_states: bool = False,
    ) -> None:
        super().__init__()
        self.signals = signals
        self.config = config
        self.num_layers: int = config.num_hidden_layers
        self.relation_layer = relation_layer
        runs_all = isinstance(signals, StudentSignals) and signals.student.relation is not None
        self.layers_run = relation_layer if runs_all or gives_states else relation_layer - 1
        self.gives_states = gives_states
        self.hidden_size: int = config.hidden_size
        self.freeze()

    @torch.no_grad()
    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """Computes query, key and value of the relation layer, and the states behind it if given.

        Args:
            input_ids: int64 [B, S].
            attention_mask: bool or int [B, S], non-zero where a position is not padding.
            token_type_ids: int64 [B, S] segments, or None; not used by RoBERTa, whose only
                segment is 0.

        Returns:
            Three or four tensors [B, S, H] of the teacher's type, without gradient.
        """
        return self.signals(input_ids, attention_mask.bool(), token_type_ids)

    @property
    def takes_packed(self) -> bool:
        """Whether :meth:`packed` is there: our own encoders have it."""
        return isinstance(self.signals, StudentSignals)

    @torch.no_grad()
    def packed(
        self, input_ids: Tensor, token_type_ids: Tensor, layout: Layout
    ) -> tuple[Tensor, ...]:
        """Computes the same signals, each [T, H], of packed ids and segments, integers [T]."""
        assert isinstance(self.signals, StudentSignals)
        return self.signals.packed(input_ids, token_type_ids, layout)


def signals_of(model: nn.Module, with_states: bool = False) -> nn.Module:
    """Makes the module that computes the relation signals of `model`, by its class.

    The result takes (input_ids, attention_mask, token_type_ids) and returns query, key and value,
    each [B, S, H]. It takes over the parts of `model` that it needs. The relation layer is the last
    one of `model`, which loading has already shortened; a student with relation projections has
    its signals behind that.

    Args:
        model: an encoder of a family of `encoder_families`, or a student.
        with_states: give the model's last states too, [B, S, H].
    """
    if isinstance(model, MiniMoeForRelations | ElasticForRelations):
        return StudentSignals(model, with_states)
    assert isinstance(model.config, PreTrainedConfig)
    family = ENCODER_FAMILIES[model.config.model_type]
    if family.shared_layer is not None:
        layer, call = model.get_submodule(family.shared_layer), model.config.num_hidden_layers - 1
    else:
        layer, call = _layers_of(model, family)[-1], 0
    if with_states:
        maps = [layer.get_submodule(name) for name in family.maps]
        return HeardEncoder(model, maps, family.reads_segments, call)
    if family.shared_layer is not None:
        # The layer that runs before is the relation layer too, and keeps all of its parts.
        model.config.num_hidden_layers -= 1
    else:
        model.set_submodule(family.layers, _layers_of(model, family)[:-1])
    if family.norms is not None:
        # Layers normalise their input: the relation layer's norm stands before its projections,
        # where the encoder has the one after the last layer.
        behind, before = family.norms
        model.set_submodule(behind, layer.get_submodule(before))
    maps = [layer.get_submodule(name) for name in family.maps]
    return CutEncoder(model, maps, family.reads_segments)


def _layers_of(model: nn.Module, family: EncoderFamily) -> nn.ModuleList:
    layers = model.get_submodule(family.layers)
    assert isinstance(layers, nn.ModuleList), family.layers
    return layers


def teacher_of(model: nn.Module, with_states: bool = False) -> RelationTeacher:
    """Makes a teacher of a loaded encoder or student, which it takes over, at its last layer.

    For what has a layout of its own on disk, such as a published student with experts.
    """
    config = copy.deepcopy(model.config)
    assert isinstance(config, PreTrainedConfig)
    signals = signals_of(model, with_states)
    return RelationTeacher(signals, config, config.num_hidden_layers, with_states)


def load_teacher(
    path: str,
    *,
    relation_layer: int = -1,
    with_states: bool = False,
    dtype: torch.dtype | str = "float32",
    device: torch.device | str = "cpu",
) -> RelationTeacher:
    """Loads a teacher that gives its relation layer's queries, keys and values.

    A folder may hold a Hugging Face encoder, a student that this package exported, or the ranks of
    a Megatron checkpoint.

    Weights go from the file into place (nothing is initialised first), from safetensors where
    there are some, never through unrestricted pickle; layers behind the relation layer are not
    read. Attention is PyTorch's scaled dot product where the architecture has it.

    Args:
        path: folder, ``package:NAME``, or name on the Hugging Face hub.
        relation_layer: layer from 1; -1 is the last one, and the only one of a student with
            relation projections behind its layers.
        with_states: give the states behind the relation layer too, as the encoder ends there.
        dtype: a torch type, its name, or "auto": bfloat16 (float16 where there is none) on a
            GPU and on a CPU that multiplies bfloat16 itself, else float32. "float8": bfloat16
            with linear maps of 8 bits (:mod:`.float8`).
        device: where the teacher shall live.

    Raises:
        UserError: there is no such model, its type is not supported, weights are missing or
            of another shape, or the file is an unsafe pickle.
    """
    from ..model_paths import resolve_model_path

    folder = resolve_model_path(path)
    device = torch.device(device)
    config = read_encoder_config(path, folder)
    layer = layer_number(config, relation_layer)
    first_layers = cut_config(config, layer)
    in_8_bits = dtype == FLOAT8
    if in_8_bits and device.type == "cuda" and not multiplies_float8(device):
        raise UserError(
            "teacher.dtype: float8 needs a GPU that multiplies it (Ada, Hopper or later), and "
            f"{torch.cuda.get_device_name(device)} does not; give auto"
        )
    model = load_encoder(
        path, folder, first_layers, torch.bfloat16 if in_8_bits else encoder_dtype(dtype, device)
    )
    family = ENCODER_FAMILIES.get(config.model_type)
    is_alike = family is not None and described_config(config).runs_as_students
    if is_alike and (in_8_bits or device.type == "cuda"):
        model = as_student(model, with_states)
    teacher = RelationTeacher(signals_of(model, with_states), config, layer, with_states)
    if in_8_bits:
        quantize_maps(teacher)
    return teacher.to(device)


@dataclass(frozen=True)
class UnfilledTeacher:
    """A teacher whose weights are still on disk.

    Attributes:
        teacher: its parameters on the meta device; they take no memory.
        weights: on disk; checked to be all there, in their shapes.
        names: parameter of ``teacher`` -> its name in ``weights``.
    """

    teacher: RelationTeacher
    weights: SlicedWeights | MegatronWeights
    names: Mapping[str, str]


def unfilled_teacher(
    path: str,
    *,
    relation_layer: int = -1,
    with_states: bool = False,
    dtype: torch.dtype | str = "float32",
) -> UnfilledTeacher:
    """Makes a teacher to be filled with weights piece by piece, for layouts that share it out.

    Arguments and errors are those of :func:`load_teacher` for a CPU; besides, weights must be
    safetensors or a Megatron checkpoint's.
    """
    from ..model_paths import resolve_model_path

    folder = resolve_model_path(path)
    config = read_encoder_config(path, folder)
    layer = layer_number(config, relation_layer)
    model = empty_encoder(cut_config(config, layer), encoder_dtype(dtype, torch.device("cpu")))
    weights = open_weights(path, folder, model)
    model_names = {parameter: name for name, parameter in model.named_parameters()}
    teacher = RelationTeacher(signals_of(model, with_states), config, layer, with_states)
    names = {name: model_names[parameter] for name, parameter in teacher.named_parameters()}
    shapes = {names[name]: parameter.shape for name, parameter in teacher.named_parameters()}
    weights.check(config.model_type, shapes)
    if isinstance(weights, SlicedWeights):
        weights.refuse_unread(config.model_type, model_names.values(), layer)
    return UnfilledTeacher(teacher, weights, names)


def cut_config(config: PreTrainedConfig, layer: int) -> PreTrainedConfig:
    """Returns the configuration of an encoder's first layers."""
    cut = copy.deepcopy(config)
    cut.num_hidden_layers = layer
    if getattr(config, "layer_types", None):  # a kind of attention for each layer
        cut.layer_types = config.layer_types[:layer]
    return cut


def layer_number(config: PreTrainedConfig, relation_layer: int) -> int:
    """Returns the number of a relation layer, from 1; -1 is the last one."""
    layers: int = config.num_hidden_layers
    layer = layers if relation_layer == -1 else relation_layer
    assert 1 <= layer <= layers, f"relation layer {relation_layer} of {layers}"
    assert layer == layers or not getattr(config, "relation_projections", False), "has none inside"
    return layer

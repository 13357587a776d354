"""The teacher: any Hugging Face encoder, cut at its relation layer and frozen.

Only what leads to the relation layer's queries, keys and values is loaded and run: no later layer,
no attention or feed-forward of the relation layer itself, no pooler. The three signals are bit for
bit those of the uncut model. To teach with another kind of encoder, add its model type to
`_ENCODERS` and its class to `signals_of`.

Shapes: B samples, S positions, H the teacher's width.
"""

import contextlib
import copy
import pickle
from collections.abc import Iterator
from typing import Self

import torch
import transformers.utils.logging as transformers_logging
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    BertModel,
    MegatronBertModel,
    PreTrainedConfig,
    PreTrainedModel,
    RobertaModel,
)

_ENCODERS: dict[str, type[PreTrainedModel]] = {
    "bert": BertModel,
    "roberta": RobertaModel,
    "megatron-bert": MegatronBertModel,
}

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class CutEncoder(nn.Module):
    """The layers before a relation layer, then that layer's three projections.

    Args:
        encoder: a Hugging Face encoder whose last hidden state is what the projections read.
        attention: holder of the relation layer's ``query``, ``key`` and ``value`` maps.
        reads_segments: whether the encoder was trained with segment ids.
    """

    def __init__(self, encoder: nn.Module, attention: nn.Module, reads_segments: bool) -> None:
        super().__init__()
        self.encoder = encoder
        self.query = attention.get_submodule("query")
        self.key = attention.get_submodule("key")
        self.value = attention.get_submodule("value")
        self.reads_segments = reads_segments

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each [B, S, H]."""
        segments = {"token_type_ids": token_type_ids} if self.reads_segments else {}
        hidden = self.encoder(
            input_ids=input_ids, attention_mask=attention_mask, **segments
        ).last_hidden_state
        return self.query(hidden), self.key(hidden), self.value(hidden)


class RelationTeacher(nn.Module):
    """A frozen teacher: always in evaluation mode, without gradients.

    Attributes:
        config: configuration of the uncut model.
        num_layers: layers of the uncut model.
        relation_layer: the layer whose projections are the signals, from 1.
        hidden_size: width of each signal.
    """

    def __init__(self, signals: nn.Module, config: PreTrainedConfig, relation_layer: int) -> None:
        super().__init__()
        self.signals = signals
        self.config = config
        self.num_layers: int = config.num_hidden_layers
        self.relation_layer = relation_layer
        self.hidden_size: int = config.hidden_size
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> Self:
        """Stays in evaluation mode, whatever a surrounding module asks for."""
        return super().train(False)

    @torch.no_grad()
    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Query, key and value of the relation layer.

        Args:
            input_ids: int64 [B, S].
            attention_mask: bool or int [B, S], non-zero where a position is not padding.
            token_type_ids: int64 [B, S] segments, or None; not used by RoBERTa, whose only
                segment is 0.

        Returns:
            Three tensors [B, S, H] of the teacher's type, without gradient.
        """
        return self.signals(input_ids, attention_mask.bool(), token_type_ids)


def signals_of(model: nn.Module) -> nn.Module:
    """What computes the relation signals of `model`, chosen by its class.

    The result takes (input_ids, attention_mask, token_type_ids) and returns query, key and value,
    each [B, S, H]. It takes over the parts of `model` that it needs. For a Hugging Face encoder
    the relation layer is the last one of `model`, which loading has already shortened.

    Raises:
        ValueError: If the class is none that can teach.
    """
    if not isinstance(model, BertModel | RobertaModel | MegatronBertModel):
        raise ValueError(f"{type(model).__name__} cannot teach; supported: {_supported()}")
    layers = model.encoder.layer
    attention = layers[-1].attention
    model.encoder.layer = layers[:-1]
    if isinstance(model, MegatronBertModel):
        # Layers normalise their input here: the relation layer's LayerNorm stands before its
        # projections, where the encoder has the one after the last layer.
        model.encoder.ln = attention.ln
    return CutEncoder(model, attention.self, reads_segments=not isinstance(model, RobertaModel))


def load_teacher(
    path: str,
    *,
    relation_layer: int = -1,
    dtype: torch.dtype | str = "float32",
    device: torch.device | str = "cpu",
) -> RelationTeacher:
    """Load a teacher that gives its relation layer's queries, keys and values.

    Weights go from the file into place (nothing is initialised first), from safetensors where
    there are some, never through unrestricted pickle; layers behind the relation layer are not
    read. Attention is PyTorch's scaled dot product where the architecture has it.

    Args:
        path: folder, ``package:NAME``, or name on the Hugging Face hub.
        relation_layer: layer from 1; -1 is the last one.
        dtype: a torch type, its name, or "auto": bfloat16 (float16 where there is none) on a
            GPU and on a CPU that multiplies bfloat16 itself, else float32.
        device: where the teacher shall live.

    Raises:
        ValueError: If there is no such model, its type is not supported, `relation_layer` is out
            of range, weights are missing or of another shape, or the file is an unsafe pickle.
    """
    from ..runtime import resolve_model_path

    folder = resolve_model_path(path)
    device = torch.device(device)
    config = _read_config(path, folder)
    layer = _layer_number(path, config, relation_layer)
    cut = copy.deepcopy(config)
    cut.num_hidden_layers = layer
    model = _load_encoder(path, folder, cut, _resolve_dtype(dtype, device))
    return RelationTeacher(signals_of(model), config, layer).to(device)


def _supported() -> str:
    return ", ".join(sorted(_ENCODERS))


def _read_config(path: str, folder: str) -> PreTrainedConfig:
    try:
        config = AutoConfig.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"teacher.model_name_or_path: {path} has no readable config.json "
            f"({_first_line(error)}); give a Hugging Face folder with one of: {_supported()}"
        ) from error
    if config.model_type not in _ENCODERS:
        raise ValueError(
            f"teacher.model_name_or_path: {path} is of type {config.model_type}; "
            f"supported: {_supported()}"
        )
    return config


def _layer_number(path: str, config: PreTrainedConfig, relation_layer: int) -> int:
    layers: int = config.num_hidden_layers
    layer = layers if relation_layer == -1 else relation_layer
    if not 1 <= layer <= layers:
        raise ValueError(
            f"teacher.relation_layer: {relation_layer} is not a layer of {path}; "
            f"choose 1 to {layers}, or -1 for the last"
        )
    return layer


def _resolve_dtype(dtype: torch.dtype | str, device: torch.device) -> torch.dtype:
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype != "auto":
        if dtype not in _DTYPES:
            raise ValueError(
                f"teacher.dtype: {dtype} is not one of auto, {', '.join(_DTYPES)}; choose one"
            )
        return _DTYPES[dtype]
    if device.type != "cuda":
        # Two to three times as fast where the processor multiplies bfloat16 itself, and the
        # relations move by less than a thousandth of any student's loss.
        return torch.bfloat16 if _cpu_multiplies_bfloat16() else torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def _cpu_multiplies_bfloat16() -> bool:
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, check, bool)() for check in checks)


def _load_encoder(
    path: str, folder: str, config: PreTrainedConfig, dtype: torch.dtype
) -> PreTrainedModel:
    where = f"teacher.model_name_or_path: {path}"
    try:
        with _quiet_transformers():
            model, report = _ENCODERS[config.model_type].from_pretrained(
                folder,
                config=config,
                dtype=dtype,
                add_pooling_layer=False,
                weights_only=True,
                ignore_mismatched_sizes=True,  # reported below, in one line
                output_loading_info=True,
            )
    except pickle.UnpicklingError as error:
        # PyTorch's own message advises to load without restriction.
        raise ValueError(
            f"{where} has weights in a pickle of more than tensors, which could run any code; "
            "give a model.safetensors"
        ) from error
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise ValueError(
            f"{where} has no weights that can be loaded ({_first_line(error)}); "
            "give a complete model.safetensors"
        ) from error
    # transformers fills both with random numbers and only prints a warning.
    for what, keys in (
        ("are missing", sorted(report["missing_keys"])),
        (
            "have another shape than config.json says",
            sorted(key for key, *_ in report["mismatched_keys"]),
        ),
    ):
        if keys:
            raise ValueError(
                f"{where}: {len(keys)} weights of a {config.model_type} encoder {what}, the first "
                f"is {keys[0]}; give the checkpoint and the configuration of one model"
            )
    return model


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Silence the report on layers left out on purpose, and the bar over weights."""
    verbosity = transformers_logging.get_verbosity()
    had_bar = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if had_bar:
            transformers_logging.enable_progress_bar()

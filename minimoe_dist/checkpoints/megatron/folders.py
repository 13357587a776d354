"""Hugging Face's side: ``megatron-bert`` folders, read tensor by tensor and written in pieces."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import get_args

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, MegatronBertConfig

from ...errors import UserError, first_line
from ...megatron_files.arguments import Activation
from ...megatron_files.naming import HEADS, SEGMENTS, hugging_face_name
from ...models.megatron.reading import MegatronCheckpoint
from ...models.weights import FolderWeights
from ..sharded import write_pieces
from ..tensors import save_tensors

# Rows of the vocabulary that no token has: kept, so that a way back gives the same files.
PADDING_FILE = "megatron_padding.safetensors"
ENCODER_CLASS = "MegatronBertModel"
_ACTIVATIONS = get_args(Activation)
_BIAS, _TIED_BIAS = "cls.predictions.bias", "cls.predictions.decoder.bias"
_ENCODER = "bert."
_WEIGHT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class MegatronBertFolder:
    """A folder whose tensors are read when they are asked for.

    Attributes:
        config: of the model.
        heads: which parts of `HEADS` it has.
        has_segments: whether it has token-type embeddings.
        padding: rows behind its vocabulary, by common names, of an earlier conversion.

    Raises:
        UserError: it holds no such model, or one that Megatron-LM cannot be.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = read_config(folder)
        self._weights = FolderWeights(str(folder), str(folder), pickles=True)
        self._prefix = "" if any(name.startswith(_ENCODER) for name in self._weights) else _ENCODER
        self.heads = [head for head, names in HEADS.items() if names[0] in self]
        self.has_segments = SEGMENTS in self
        path = folder / PADDING_FILE
        self.padding: dict[str, Tensor] = load_file(path) if path.is_file() else {}

    def __contains__(self, common: object) -> bool:
        return self._stored_name(hugging_face_name(str(common))) in self._weights

    def get(self, name: str) -> Tensor:
        """Reads a tensor by Hugging Face's name with ``bert.`` before it.

        Raises:
            UserError: there is none.
        """
        if name == _BIAS and name not in self._weights and _TIED_BIAS in self._weights:
            name = _TIED_BIAS
        return self._weights.read(self._stored_name(name))

    def dtype(self) -> torch.dtype:
        """Returns the type of the weights, as that of one of them says."""
        return self.get(hugging_face_name("encoder.final_layernorm.weight")).dtype

    def _stored_name(self, name: str) -> str:
        return name.removeprefix(self._prefix) if self._prefix else name


def class_name(heads: Iterable[str]) -> str:
    """Returns the class in transformers of a model with some of `HEADS`."""
    present = set(heads)
    if "lm_head" not in present:
        return ENCODER_CLASS
    return "MegatronBertForPreTraining" if "binary_head" in present else "MegatronBertForMaskedLM"


def read_config(folder: Path) -> MegatronBertConfig:
    """Reads the configuration of a ``megatron-bert`` folder.

    Raises:
        UserError: there is none, it is of another type, or of an activation that Megatron has not
            or an epsilon that no model has.
    """
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        reason = first_line(error)
        raise UserError(f"{folder}: no readable config.json ({reason}); give a model") from error
    if not isinstance(config, MegatronBertConfig):
        raise UserError(
            f"{folder}: is of type {config.model_type}; Megatron's BERT has its LayerNorms before "
            "each block, as only megatron-bert has them: give such a model"
        )
    if config.hidden_act not in _ACTIVATIONS:
        raise UserError(
            f"{folder}: hidden_act {config.hidden_act} is none of Megatron's BERT; there are "
            f"{', '.join(_ACTIVATIONS)}"
        )
    epsilon = config.layer_norm_eps
    if not isinstance(epsilon, int | float) or not 0 < epsilon < 1:
        raise UserError(
            f"{folder}: layer_norm_eps {epsilon!r} is none that a model can have; give the "
            "config.json that it was saved with"
        )
    return config


def write_folder(
    checkpoint: MegatronCheckpoint,
    config: MegatronBertConfig,
    folder: Path,
    dtype: torch.dtype | None,
) -> None:
    """Writes a checkpoint's weights, its configuration and the padding of its vocabulary.

    Args:
        checkpoint: open.
        config: of the model; gets its class and type.
        folder: exists.
        dtype: of the weights; None keeps each one's.
    """
    name = class_name(head for head, names in HEADS.items() if names[0] in checkpoint.names)
    is_encoder = name == ENCODER_CLASS
    config.architectures = [name]
    types: set[torch.dtype] = set()

    def weights() -> Iterator[tuple[str, Tensor]]:
        for key, value in checkpoint.tensors(config.vocab_size):
            weight = converted(checkpoint.files.root, key, value, dtype)
            types.add(weight.dtype)
            yield key.removeprefix(_ENCODER) if is_encoder else key, weight
        if SEGMENTS not in checkpoint.names:
            key = hugging_face_name(SEGMENTS)
            empty = torch.zeros(
                config.type_vocab_size, config.hidden_size, dtype=max(types, key=str)
            )
            yield key.removeprefix(_ENCODER) if is_encoder else key, empty

    write_pieces(weights(), folder)
    config.dtype = next(iter(types)) if len(types) == 1 else torch.float32
    config.save_pretrained(folder)
    padding = checkpoint.padding(config.vocab_size)
    if any(rows.any() for rows in padding.values()):
        save_tensors(padding, folder / PADDING_FILE)


def converted(source: Path, name: str, value: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Returns a weight in the type that it is written in.

    Args:
        source: where it is from, for messages.
        name: its name, for messages.
        value: the weight.
        dtype: None keeps its own.

    Raises:
        UserError: it is not of finite numbers, or some are too large for the type.
    """
    is_of_weights = value.dtype in _WEIGHT_DTYPES
    result = value.to(dtype) if is_of_weights and dtype is not None else value
    if not is_of_weights:
        fault = f"is of {value.dtype}, which no weight is; give the model as it was trained"
    elif result.isfinite().all():
        return result
    elif value.isfinite().all():
        fault = f"has numbers that {dtype} cannot hold; give --dtype bfloat16, or leave it out"
    else:
        fault = "has numbers that are not finite; give a checkpoint from before that"
    raise UserError(f"{source}: {name} {fault.replace('torch.', '')}")

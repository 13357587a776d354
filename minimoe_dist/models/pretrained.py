"""Loads encoders from folders and hubs: weights straight into place, never foreign code.

What transformers would only warn of is refused in one line: weights that are missing or have
another shape, pickles of more than tensors, models of another kind.
"""

import contextlib
import inspect
import pickle
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transformers.utils.logging as transformers_logging
from safetensors import SafetensorError
from torch import nn
from transformers import MODEL_MAPPING, MegatronBertConfig, PreTrainedConfig, PreTrainedModel

from ..encoder_families import ENCODER_FAMILIES
from ..errors import UserError, first_line
from ..megatron_files.headers import is_megatron_folder, megatron_values
from ..model_description import ModelDescription, description_of, require_model
from .auto import AutoConfig
from .configuration import MiniMoeConfig
from .elastic import ElasticForRelations
from .elastic_configuration import ElasticConfig
from .megatron.reading import MegatronWeights
from .moebert import MiniMoeForRelations
from .weights import SlicedWeights, refuse_incomplete, refuse_unread

# The students of this package teach as assistants.
_STUDENTS: dict[str, type[PreTrainedModel]] = {
    MiniMoeConfig.model_type: MiniMoeForRelations,
    ElasticConfig.model_type: ElasticForRelations,
}
_OPTION = "teacher.model_name_or_path"
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def encoder_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """Returns the class of a teacher: transformers' encoder, or a student of this package."""
    found: type[PreTrainedModel] | None = _STUDENTS.get(config.model_type)
    return MODEL_MAPPING[type(config)] if found is None else found


def size_of(config: PreTrainedConfig, name: str) -> int:
    """Returns a size of a teacher by our name of it."""
    family = ENCODER_FAMILIES.get(config.model_type)
    size: int = getattr(config, name if family is None else family.names.get(name, name))
    return size


def base_of_students(config: PreTrainedConfig) -> Any:
    """Returns what a teacher's students take over: its vocabulary, ids and positions.

    Of what students are not built like, all else is BERT's.
    """
    family = ENCODER_FAMILIES.get(config.model_type)
    if family is None or not family.only_teaches:
        return config
    described = described_config(config)
    return SimpleNamespace(
        family=described.family,
        vocab_size=described.vocab_size,
        max_position_embeddings=described.max_position_embeddings,
        type_vocab_size=described.type_vocab_size,
        pad_token_id=described.pad_token_id,
        bos_token_id=getattr(config, "bos_token_id", None),
        eos_token_id=getattr(config, "eos_token_id", None),
        hidden_act="gelu",
    )


def longest_sequence(config: PreTrainedConfig) -> int:
    """Returns the number of tokens of the longest sequence that an encoder takes."""
    return described_config(config).longest_sequence


def described_config(config: PreTrainedConfig) -> ModelDescription:
    """Returns the description of a teacher whose configuration is loaded."""
    return description_of(config.to_dict(), config.name_or_path, "", foreign=True)


def read_encoder_config(path: str, folder: str) -> PreTrainedConfig:
    """Reads the configuration of a teacher.

    Args:
        path: what the user gave, for messages.
        folder: where that is, or its name on the hub.

    Raises:
        UserError: no model there, or none that can teach as it stands.
    """
    description = require_model(path, _OPTION, weights=False, teaches=True)
    if description.is_published_student:
        raise UserError(
            f"{_OPTION}: {path} is a published student (moe {description.moe}, sparsity "
            f"{description.sparsity}), which is no plain {description.model_type}; convert it to "
            "an export and give that"
        )
    if description.is_megatrons:
        return MegatronBertConfig(**megatron_values(Path(folder)))
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{_OPTION}: {path} has no readable config.json ({first_line(error)}); give a Hugging "
            "Face folder"
        ) from error
    assert isinstance(config, PreTrainedConfig)
    return config


def encoder_dtype(dtype: torch.dtype | str, device: torch.device) -> torch.dtype:
    """Resolves the type of a teacher's weights on a device; "auto" is what that multiplies fast.

    Raises:
        UserError: an unknown name.
    """
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype != "auto":
        if dtype not in _DTYPES:
            raise UserError(
                f"teacher.dtype: {dtype} is not one of auto, {', '.join(_DTYPES)}; choose one"
            )
        return _DTYPES[dtype]
    if device.type != "cuda":
        # Two to three times as fast where the processor multiplies bfloat16 itself, and the
        # relations move by less than a thousandth of any student's loss.
        return torch.bfloat16 if _cpu_multiplies_bfloat16() else torch.float32
    # PyTorch would emulate it on older cards, at a tenth of their speed.
    is_native = torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.bfloat16 if is_native else torch.float16


def _cpu_multiplies_bfloat16() -> bool:
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, check, bool)() for check in checks)


def load_encoder(
    path: str, folder: str, config: PreTrainedConfig, dtype: torch.dtype
) -> PreTrainedModel:
    """Loads the encoder that ``config`` describes, layers behind its last one left out.

    Args:
        path: what the user gave, for messages.
        folder: where that is, or its name on the hub.
        config: of :func:`read_encoder_config`, perhaps with fewer layers.
        dtype: of the weights.

    Raises:
        UserError: weights are missing, of another shape or unreadable, or the file is an unsafe
            pickle.
    """
    source = f"{_OPTION}: {path}"
    if is_megatron_folder(Path(folder)):
        return _load_megatron(path, folder, config, dtype)
    try:
        with quiet_transformers():
            model, report = encoder_class(config).from_pretrained(
                folder,
                config=config,
                dtype=dtype,
                **_class_options(config),
                weights_only=True,
                ignore_mismatched_sizes=True,  # reported below, in one line
                output_loading_info=True,
            )
    except pickle.UnpicklingError as error:
        # PyTorch's own message advises to load without restriction.
        raise UserError(
            f"{source} has weights in a pickle of more than tensors, which could run any code; "
            "give a model.safetensors"
        ) from error
    except (OSError, RuntimeError, ValueError, SafetensorError) as error:
        raise UserError(
            f"{source} has no weights that can be loaded ({first_line(error)}); "
            "give a complete model.safetensors"
        ) from error
    refuse_incomplete(
        source,
        config.model_type,
        list(report["missing_keys"]),
        [key for key, *_ in report["mismatched_keys"]],
    )
    family = ENCODER_FAMILIES.get(config.model_type)
    layers = size_of(config, "num_hidden_layers")
    refuse_unread(source, config.model_type, family, report["unexpected_keys"], layers)
    return model


def _load_megatron(
    path: str, folder: str, config: PreTrainedConfig, dtype: torch.dtype
) -> PreTrainedModel:
    model = empty_encoder(config, dtype)
    weights = MegatronWeights(path, folder)
    parameters = dict(model.named_parameters())
    weights.check(config.model_type, {name: value.shape for name, value in parameters.items()})
    for name, value in parameters.items():
        filled = torch.empty_like(value, device="cpu")
        weights.copy_into(filled, name)
        owner, _, own_name = name.rpartition(".")
        model.get_submodule(owner).register_parameter(own_name, nn.Parameter(filled))
    return model.eval()


def open_weights(path: str, folder: str, model: PreTrainedModel) -> SlicedWeights | MegatronWeights:
    """Opens a teacher's weights to read them in slices.

    Args:
        path: what the user gave, for messages.
        folder: where that is, or its name on the hub.
        model: that they are read into.

    Raises:
        UserError: there are none that can be read so.
    """
    if is_megatron_folder(Path(folder)):
        return MegatronWeights(path, folder)
    family = ENCODER_FAMILIES.get(model.config.model_type)
    return SlicedWeights(path, folder, model.base_model_prefix, family)


def empty_encoder(config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """Makes the encoder that ``config`` describes with its parameters on the meta device.

    Buffers that no checkpoint holds have their values, on CPU.
    """
    # Buffers such as rotary frequencies are float32 in any type, as where weights are loaded.
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"):
            model = encoder_class(config)(config, **_class_options(config))
        for module in list(model.modules()):
            buffers = dict(module.named_buffers(recurse=False))
            for name, buffer in buffers.items():
                setattr(module, name, torch.empty_like(buffer, device="cpu"))
            if buffers:
                model._init_weights(module)
    finally:
        torch.set_default_dtype(before)
    return model


def _class_options(config: PreTrainedConfig) -> dict[str, bool]:
    has_pooler = "add_pooling_layer" in inspect.signature(encoder_class(config)).parameters
    return {"add_pooling_layer": False} if has_pooler else {}


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silences the report on layers left out on purpose, and the bar over weights."""
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

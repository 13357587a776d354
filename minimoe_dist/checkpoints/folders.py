"""Hugging Face folders as they are: copied, counted, loaded by the class that they name."""

import math
import shutil
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel

from ..corpus.casing import undeclared_casing
from ..durable import write_json
from ..errors import UserError
from ..foreign import read_json
from ..model_description import TEACHERS, read_model_json
from ..models.auto import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)
from ..models.foreign_tasks import ForeignTaskModel
from ..models.pretrained import quiet_transformers

_COPIED = {".json", ".safetensors", ".txt", ".model", ".py"}
# What an earlier export put beside the model, and this one writes anew.
_REWRITTEN = {"modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"}
_HEAD_LOADERS = {
    "ForSequenceClassification": AutoModelForSequenceClassification,
    "ForTokenClassification": AutoModelForTokenClassification,
}
POOLINGS = {"mean": "mean_tokens", "cls": "cls_token", "max": "max_tokens"}


def copy_model(source: Path, target: Path) -> None:
    """Copies a model's files (configuration, safetensors, tokenizer, code) into a folder.

    A tokenizer whose files leave open whether it lower-cases gets what its vocabulary says, since
    transformers would lower-case.

    Raises:
        UserError: there are no safetensors; pickles are not handed on.
    """
    files = [path for path in sorted(source.iterdir()) if path.suffix in _COPIED and path.is_file()]
    if not any(path.suffix == ".safetensors" for path in files):
        raise UserError(f"{source}: has no model.safetensors; save the model as safetensors first")
    for file in files:
        if file.name not in _REWRITTEN:
            shutil.copy(file, target)
    casing = undeclared_casing(str(source))
    if casing is not None:
        path = target / "tokenizer_config.json"
        settings = read_json(path) if path.is_file() else {}
        settings["do_lower_case"] = casing.lower_case
        settings["strip_accents"] = casing.strip_accents
        write_json(path, settings)


def exported_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Returns the names and shapes of the weights in a folder's safetensors."""
    shapes = {}
    for path in sorted(folder.glob("model*.safetensors")):
        with safe_open(path, "pt") as file:
            for key in file.keys():  # noqa: SIM118 (no mapping)
                shapes[key] = tuple(file.get_slice(key).get_shape())
    return shapes


def exported_parameters(folder: Path) -> int:
    """Counts the weights in a folder's safetensors, without rows kept for Megatron-LM."""
    return sum(map(math.prod, exported_shapes(folder).values()))


def load_model(folder: str | Path) -> nn.Module:
    """Loads a folder's model in evaluation mode, float32, with its classification head, if any.

    Raises:
        UserError: its configuration cannot be read.
    """
    values = read_model_json(folder)
    names = values.get("architectures") or [""]
    loader: Any = AutoModel
    for suffix, head_loader in _HEAD_LOADERS.items():
        if suffix in names[0]:
            loader = head_loader
    with quiet_transformers():
        model: nn.Module = loader.from_pretrained(
            folder, dtype="float32", weights_only=True, trust_remote_code=False
        )
    if values.get("model_type") in TEACHERS and isinstance(model, PreTrainedModel):
        tags_tokens = loader is AutoModelForTokenClassification
        return ForeignTaskModel(model, tags_tokens=tags_tokens).eval()
    return model.eval()


def write_sentence_layout(
    folder: Path, *, hidden_size: int, longest: int, pooling: str, normalize: bool
) -> None:
    """Puts the files of sentence-transformers beside a model.

    They are those that the library has read since its version 2.

    Args:
        folder: of the model and its tokenizer.
        hidden_size: width of an embedding.
        longest: tokens that a sentence is cut to.
        pooling: of `POOLINGS`.
        normalize: whether embeddings get length 1.
    """
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
    modules += [("2_Normalize", "Normalize")] if normalize else []
    entries = [
        {
            "idx": index,
            "name": str(index),
            "path": path,
            "type": f"sentence_transformers.models.{name}",
        }
        for index, (path, name) in enumerate(modules)
    ]
    write_json(folder / "modules.json", entries)
    write_json(
        folder / "sentence_bert_config.json", {"max_seq_length": longest, "do_lower_case": False}
    )
    (folder / "1_Pooling").mkdir()
    modes = {f"pooling_mode_{mode}": name == pooling for name, mode in POOLINGS.items()}
    write_json(
        folder / "1_Pooling" / "config.json", {"word_embedding_dimension": hidden_size, **modes}
    )

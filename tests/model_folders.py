"""Folders of models that no code has trained: of weights, zeros of the sizes in ``config.json``."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from minimoe_dist.model_description import description_of
from minimoe_dist.preflight.weights import expected_tensors

SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def write_model(folder: Path, values: dict[str, Any]) -> Path:
    """Writes the configuration, all weights of a plain encoder, and a vocabulary."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(values))
    (folder / "vocab.txt").write_text("\n".join(SPECIAL_TOKENS) + "\na\n")
    shapes = expected_tensors(description_of(values, str(folder), folder))
    tensors = {name: np.zeros(shape or (1,), np.float32) for name, shape in shapes.items()}
    save_file(tensors, folder / "model.safetensors")
    return folder

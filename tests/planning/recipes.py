"""Recipes for plans: a teacher's folder with nothing but its sizes, and what differs by test."""

import json
from pathlib import Path
from typing import Any

from minimoe_dist.config import RunConfig
from minimoe_dist.planning.machine import Machine

FAMILY_SIZES = {
    "vocab_size": 200,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
    "type_vocab_size": 2,
}


def write_teacher(folder: Path, model_type: str = "bert", **changes: Any) -> str:
    folder.mkdir(exist_ok=True)
    values = {**FAMILY_SIZES, "model_type": model_type, **changes}
    (folder / "config.json").write_text(json.dumps(values))
    return str(folder)


def run_config(folder: str, model_type: str = "moebert_minilm", **sections: Any) -> RunConfig:
    values: dict[str, Any] = {
        "model_type": model_type,
        "output_dir": "runs/planned",
        "teacher": {"model_name_or_path": folder},
        "students": [{"layer": 2, "hidden": 16, "heads": 2, "moe": "1,4"}],
        "objective": {"num_relation_heads": 4},
        "data": {"record_path_or_regex": "corpora/none", "max_length": 32},
        "training": {"per_device_train_batch_size": 8, "max_steps": 10},
    }
    for name, section in sections.items():
        is_section = isinstance(section, dict)
        values[name] = {**values.get(name, {}), **section} if is_section else section
    return RunConfig.model_validate(values)


def machine(**changes: Any) -> Machine:
    values: dict[str, Any] = {
        "device": "cuda",
        "ranks_per_node": 8,
        "memory_gib": 80,
        "tflops": {"float32": 60, "bfloat16": 900},
        "memory_gb_per_second": 3000,
        "link_gb_per_second": 400,
        "network_gb_per_second": 50,
    }
    return Machine.model_validate(values | changes)

"""Folders of models, counted."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from minimoe_dist.checkpoints.folders import exported_parameters
from minimoe_dist.checkpoints.megatron.folders import PADDING_FILE


def test_rows_kept_for_megatron_do_not_count(tmp_path: Path) -> None:
    for number in (1, 2):
        save_file({f"a{number}": torch.zeros(3, 4)}, tmp_path / f"model-0000{number}.safetensors")
    save_file({"padding": torch.zeros(5, 4)}, tmp_path / PADDING_FILE)
    assert exported_parameters(tmp_path) == 24

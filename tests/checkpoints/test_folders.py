"""Folders of models, copied and counted."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from minimoe_dist.checkpoints.folders import copy_model, exported_parameters
from minimoe_dist.checkpoints.megatron.folders import PADDING_FILE
from minimoe_dist.corpus.tokenizing import load_tokenizer


def test_rows_kept_for_megatron_do_not_count(tmp_path: Path) -> None:
    for number in (1, 2):
        save_file({f"a{number}": torch.zeros(3, 4)}, tmp_path / f"model-0000{number}.safetensors")
    save_file({"padding": torch.zeros(5, 4)}, tmp_path / PADDING_FILE)
    assert exported_parameters(tmp_path) == 24


@pytest.mark.parametrize("settings", [None, {"model_max_length": 64}])
def test_a_copied_tokenizer_says_the_casing_that_its_folder_left_open(
    settings: dict[str, int] | None, tmp_path: Path
) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    save_file({"a": torch.zeros(1)}, source / "model.safetensors")
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "Der", "Hund", "hund", "der"]
    (source / "vocab.txt").write_text("\n".join(tokens) + "\n")
    (source / "config.json").write_text('{"model_type": "bert"}')
    if settings is not None:
        (source / "tokenizer_config.json").write_text(json.dumps(settings))
    copy_model(source, target)
    written = json.loads((target / "tokenizer_config.json").read_text())
    assert written == {**(settings or {}), "do_lower_case": False, "strip_accents": None}
    assert load_tokenizer(str(target)).tokenize("Der Hund") == ["Der", "Hund"]

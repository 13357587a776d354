"""AutoConfig and AutoModel know the students once `models.auto` is imported, by whomever."""

import subprocess
import sys

import pytest

LOADS = """
config = AutoConfig.for_model("minimoe", hidden_size=24, num_attention_heads=4, vocab_size=9)
model = AutoModel.from_config(config)
print(type(config).__module__, type(model).__module__)
"""


@pytest.mark.parametrize(
    "imports",
    [
        "import minimoe_dist.models.auto\nfrom transformers import AutoConfig, AutoModel",
        "from transformers import AutoConfig, AutoModel\nimport minimoe_dist.models.auto",
        "from minimoe_dist.models.auto import AutoConfig, AutoModel",
        "from transformers import AutoConfig, AutoModel\nimport minimoe_dist.models.pretrained",
    ],
    ids=["package first", "transformers first", "by name", "along with teachers"],
)
def test_the_automatic_classes_know_the_students(tmp_path, imports) -> None:
    command = [sys.executable, "-I", "-c", imports + LOADS]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    wanted = ["minimoe_dist.models.configuration", "minimoe_dist.models.moebert"]
    assert result.stdout.split() == wanted

"""AutoConfig and AutoModel know the students, at whatever point the package is imported.

`tests/checkpoints/test_export.py` loads real folders, the package imported before and after
transformers; here it comes in between.
"""

import subprocess
import sys

CODE = """
from transformers import AutoConfig
import minimoe_dist
config = AutoConfig.for_model("minimoe", hidden_size=24, num_attention_heads=4, vocab_size=9)
assert "transformers.models.auto.modeling_auto" not in sys.modules
from transformers import AutoModel
model = AutoModel.from_config(config)
print(type(config).__module__, type(model).__module__)
"""


def test_the_automatic_classes_may_load_on_both_sides_of_the_package(tmp_path) -> None:
    command = [sys.executable, "-I", "-c", f"import sys{CODE}"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    wanted = ["minimoe_dist.models.configuration", "minimoe_dist.models.moebert"]
    assert result.stdout.split() == wanted

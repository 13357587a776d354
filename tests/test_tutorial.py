"""The tutorial, block by block, as its reader would run it: from text to a student in use."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "tutorial.md"
BLOCKS = re.findall(r"```(bash|python)\n(.*?)```", PAGE.read_text("utf-8"), re.S)


@pytest.mark.timeout(900)
def test_every_block_does_what_the_page_says(tmp_path: Path) -> None:
    environment = {
        **{key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")},
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }
    said = []
    assert "pip install" in BLOCKS[0][1]
    for language, code in BLOCKS[1:]:
        command = ["bash", "-euc", code] if language == "bash" else [sys.executable, "-c", code]
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, f"{code}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        assert "Traceback" not in done.stderr, done.stderr
        said.append(done.stdout)
    assert said[-1].strip() in ("statement", "type")
    losses = re.findall(r'"heldout_loss": {"student": ([\d.]+)', (
        tmp_path / "runs" / "student" / "metrics.jsonl").read_text())  # fmt: skip
    assert float(losses[-1]) < float(losses[0])
    for name in ("runs/student/curves.png", "report.html", "published/README.md",
                 "published/onnx/model.onnx", "runs/student/evaluation.json"):  # fmt: skip
        assert (tmp_path / name).stat().st_size > 500, name
    assert "in int8" in (tmp_path / "published" / "README.md").read_text()

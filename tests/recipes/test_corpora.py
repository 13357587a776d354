"""What a run opens: corpora of the right vocabulary, with the marks that its masks need."""

import numpy as np
import pytest
from transformers import BertConfig, BertTokenizerFast

from minimoe_dist.config import load_run_config
from minimoe_dist.corpus.build import build_indexed
from minimoe_dist.corpus.reading import ReadingOptions
from minimoe_dist.data.batches import IGNORED_LABEL
from minimoe_dist.data.indexed import IndexedCorpus
from minimoe_dist.preflight.recipes import check_stages
from minimoe_dist.recipes.corpora import open_data
from minimoe_dist.runtime import detect_launch

QUIET = ReadingOptions(show_progress=False, input_format="format")
TEXT = "清华大学位于北京市海淀区\n我们去公园散步\n\n北京市海淀区有清华大学\n散步去公园\n"
CHARACTERS = sorted(set(TEXT) - {"\n"})


def write_teacher(folder, *more):
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "play", "##ing", *CHARACTERS, *more]
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n")
    tokenizer = BertTokenizerFast(vocab=str(folder / "vocab.txt"))
    tokenizer.save_pretrained(folder)
    BertConfig(vocab_size=len(tokens)).save_pretrained(folder)
    return tokenizer


@pytest.fixture
def teacher(tmp_path):
    return write_teacher(tmp_path / "teacher")


def build(tmp_path, tokenizer, **settings):
    (tmp_path / "t.format").write_text(TEXT)
    build_indexed([str(tmp_path / "t.format")], str(tmp_path / "c"), tokenizer, QUIET, **settings)


def configuration(tmp_path, *more, teacher="teacher"):
    return load_run_config(
        None,
        [
            f"teacher.model_name_or_path={tmp_path / teacher}",
            f"data.record_path_or_regex={tmp_path / 'c'}",
            f"output_dir={tmp_path / 'out'}",
            "data.data_type=bert_mlm",
            "data.max_length=64",
            *more,
        ],
    )


def test_chinese_words_are_masked_whole(tmp_path, teacher):
    build(tmp_path, teacher, whole_words=True)
    data = open_data(configuration(tmp_path, "data.whole_word_mask=true"))
    seen = set()
    for epoch in range(60):
        batch = data.collate(data.pairs.draw(np.array([epoch]), np.array([0])), np.array([epoch]))
        ids = np.where(batch.labels[0] == IGNORED_LABEL, -1, batch.labels[0]).tolist()
        runs = "".join(teacher.convert_ids_to_tokens(i) if i >= 0 else " " for i in ids).split()
        seen.update(runs)
    assert "大学" not in seen and "北京" not in seen
    assert seen & {"散步", "公园", "我们", "位于"}


def test_without_whole_words_pairs_carry_no_marks(tmp_path, teacher):
    build(tmp_path, teacher, whole_words=True)
    pair = open_data(configuration(tmp_path)).pairs.draw(np.array([0]), np.array([0]))[0]
    assert pair.first_continues is None and pair.second_continues is None


def test_chinese_without_marks_is_refused_for_whole_words(tmp_path, teacher):
    build(tmp_path, teacher)
    with pytest.raises(ValueError, match=r"data\.whole_word_mask: .*--whole_words"):
        open_data(configuration(tmp_path, "data.whole_word_mask=true"))


def test_a_corpus_of_another_vocabulary_is_refused(tmp_path, teacher):
    build(tmp_path, teacher)
    write_teacher(tmp_path / "other", "更", "多")
    with pytest.raises(ValueError, match=r"was built with the vocabulary of .* which is not that"):
        open_data(configuration(tmp_path, teacher="other"))


@pytest.mark.parametrize("check", [open_data, "preflight"])
def test_a_corpus_that_kept_its_capitals_is_refused_for_a_teacher_without(check, tmp_path, teacher):
    vocabulary = str(tmp_path / "teacher" / "vocab.txt")
    build(tmp_path, BertTokenizerFast(vocab=vocabulary, do_lower_case=False))
    tokenizer = f"teacher.tokenizer_name_or_path={tmp_path / 'teacher'}"
    config = configuration(tmp_path, tokenizer)
    with pytest.raises(ValueError, match=r"that keeps capitals, and that of .* lower-cases"):
        if check == "preflight":
            check_stages([config], detect_launch({}), "cpu")
        else:
            open_data(config)
    open_data(configuration(tmp_path, "teacher.do_lower_case=false"))


def test_a_vocabulary_with_words_twice_is_as_large_as_its_highest_id(tmp_path):
    teacher = write_teacher(tmp_path / "teacher", "play", "大学", "大学")
    build(tmp_path, teacher)
    open_data(configuration(tmp_path))
    manifest = IndexedCorpus.open(str(tmp_path / "c")).manifest
    assert manifest.vocab_size == 5 + 2 + len(CHARACTERS) + 3

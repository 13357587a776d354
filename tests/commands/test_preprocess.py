"""``minimoe-dist preprocess``: the tools of corpora, as an installed package has them."""

import subprocess
import sys
from pathlib import Path

import pytest

from minimoe_dist.cli import main
from minimoe_dist.corpus.tools import TOOLS
from minimoe_dist.data.indexed import IndexedCorpus
from minimoe_dist.data.indexed_writing import IndexedCorpusWriter
from tests.commands import support
from tests.tools.test_preprocess import GOLDEN, TOKENIZER, WIKI

SCRIPTS = Path(__file__).parents[2] / "tools" / "preprocess"


@pytest.fixture
def wiki(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "wiki_00").write_text(WIKI)
    return tmp_path / "in"


def said(capsys: pytest.CaptureFixture[str], status: int, *words: object) -> str:
    capsys.readouterr()
    assert main(["preprocess", *map(str, words)]) == status
    found = capsys.readouterr()
    return found.out if status == 0 else found.err


def test_the_way_from_text_to_a_merged_corpus(
    wiki: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ("--input_dir", wiki, "--input_regex", r"wiki_\d+", "--output_dir", tmp_path / "text")
    assert "1 files, 2 documents" in said(capsys, 0, "format", *where)
    for part in ("one", "two"):
        where = ("--input_dir", tmp_path / "text", "--input_regex", "*.format")
        names = ("--output_dir", tmp_path / "made", "--output_prefix", part)
        assert "2 documents" in said(capsys, 0, "build", *where, *names, *TOKENIZER)
    where = ("--input_dir", tmp_path / "made", "--input_regex", "*", "--output_dir", tmp_path)
    assert "4 documents" in said(capsys, 0, "merge", *where)
    assert "give --overwrite" in said(capsys, 2, "merge", *where)
    assert "hashes: as the manifest says" in said(
        capsys, 0, "inspect", tmp_path / "corpus", "--verify"
    )


def test_a_script_writes_what_the_subcommand_does(wiki: Path, tmp_path: Path) -> None:
    ways = {
        "script": [sys.executable, str(SCRIPTS / "build_indexed.py")],
        "command": [sys.executable, "-m", "minimoe_dist", "preprocess", "build"],
    }
    for name, way in ways.items():
        words = ["--input_dir", str(wiki), "--input_regex", "*", "--num_processors", "2"]
        done = subprocess.run(
            [*way, *words, "--output_dir", str(tmp_path / name), *TOKENIZER],
            capture_output=True,
            text=True,
            env=support.clean_environment(),
        )
        assert done.returncode == 0, done.stderr
    for file in ("corpus.bin", "corpus.idx"):
        one, other = ((tmp_path / name / file).read_bytes() for name in ways)
        assert one == other


def test_tfrecords_become_a_corpus(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ("--input_dir", GOLDEN, "--output_dir", tmp_path)
    assert "documents" in said(capsys, 0, "tfrecord", *where, *TOKENIZER)
    assert len(IndexedCorpus.open(str(tmp_path / "corpus")))


def test_help_names_each_tool_and_each_option(capsys: pytest.CaptureFixture[str]) -> None:
    page = said(capsys, 0, "--help")
    for name, tool in TOOLS.items():
        assert f"  {name}" in page and tool.summary in page
        own = said(capsys, 0, name, "--help")
        assert own.startswith(f"usage: minimoe-dist preprocess {name}")
    assert main(["preprocess"]) == 2
    assert "preprocess" in said(capsys, 0, "--help")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("buidl",), "preprocess: buidl is no tool; did you mean build?"),
        (("build", "--input_dir", "x"), "required: --input_regex"),
        (("build", "--no_such"), "see minimoe-dist preprocess build --help"),
        (("inspect", "nowhere"), "no indexed corpus there"),
        (("merge", "--input_dir", "nowhere", "--output_dir", "x"), "no indexed corpus there"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    words: tuple[str, ...], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = said(capsys, 2, *words)
    assert line.startswith("minimoe-dist: ") and expected in line and line.count("\n") == 1


def test_a_damaged_corpus_ends_an_inspection_with_status_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with IndexedCorpusWriter(str(tmp_path / "c"), 100) as writer:
        writer.add_document([[1, 2, 3]])
    with (tmp_path / "c.bin").open("r+b") as file:
        file.write(b"\x09\x09")
    assert said(capsys, 1, "inspect", tmp_path / "c", "--verify").startswith("error: ")

"""Which reader a file gets, and which files are found."""

import json
import os
import random
import zlib

import pytest

from minimoe_dist.corpus.sources import (
    FormatSource,
    JsonLinesSource,
    JsonSource,
    SourceOptions,
    TextSource,
    WikiSource,
    WrappedSource,
    choose_source,
    find_inputs,
)
from minimoe_dist.corpus.streams import InputStream

RECORD = {"id": 1, "title": "T", "content": "A text."}
CASES = {
    "wiki": ('<doc id="1" title="T">\nT\n\nText.\n</doc>\n', WikiSource),
    "text": ("A sentence.\n\nAnother.\n", TextSource),
    "empty": ("", TextSource),
    "array": (json.dumps([RECORD]), JsonSource),
    "array with a byte order mark": ("\ufeff" + json.dumps([RECORD], indent=1), JsonSource),
    "empty array": ("[]\n", JsonSource),
    "wrapped array": (json.dumps({"RECORDS": [RECORD]}), JsonSource),
    "wrapped array after other members": (
        json.dumps({"version": 1, "name": "x", "RECORDS": [RECORD]}, indent=2),
        JsonSource,
    ),
    "objects over several lines": (json.dumps(RECORD, indent=2) * 2, JsonSource),
    "lines": (json.dumps(RECORD) + "\n" + json.dumps(RECORD), JsonLinesSource),
    "one line": (json.dumps(RECORD), JsonLinesSource),
    "lines, the first broken": ('{"id": 1, "content": "x}\n' + json.dumps(RECORD), JsonLinesSource),
    "long line": (json.dumps({"content": "x y. " * 20_000}), JsonLinesSource),
    "compact lines": ('{"a":1,"b":2,"text":"Text."}\n' * 9, JsonLinesSource),
    "a sentence with tags": ("<b>Note</b> that this is text.\nAnd more of it.\n", TextSource),
    "a sentence that begins as mails do": ("From 1990 on, until 1994\nAnd: then on.\n", TextSource),
    "a sentence with signs": ("We like C++-code and a+bc-d, ef+gh-i.\n" * 9, FormatSource),
    "verse with a comma a line": ("Tyger Tyger, burning bright,\nIn the, night;\n" * 9, TextSource),
    "chinese verse with commas": ("床前明月光,疑是地上霜\n举头望明月,低头思故乡\n" * 9, TextSource),
    "names": ("Smith, John\nDoe, Jane\nRoe, Richard\nPoe, Edgar\nFoe, Daniel\n" * 9, TextSource),
    "speech": ('"Yes," he said, once\n"No," she said, twice\n' * 9, TextSource),
    "lines indented by tabs": ("\tOne line\n\tAnother line\n\t\tA third\n" * 9, TextSource),
    "text that begins with a bracket": ("[1] See there. And here.\n", TextSource),
    "text that begins with a brace": ('{ "Well" he said }\n', TextSource),
}


def written(tmp_path, text, name="input"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


@pytest.mark.parametrize("case", CASES)
def test_the_format_is_recognised(tmp_path, case):
    text, kind = CASES[case]
    assert type(choose_source(InputStream(written(tmp_path, text)))) is kind


@pytest.mark.parametrize("name", ["wiki_00.format", "wiki_00.format.gz"])
def test_formatted_files_are_recognised_by_their_name(tmp_path, name):
    assert (
        type(choose_source(InputStream(written(tmp_path, "A sentence.\n", name)))) is FormatSource
    )
    quoted = '"A sentence."\n"Another."\n'
    assert type(choose_source(InputStream(written(tmp_path, quoted, name)))) is FormatSource


def test_an_unknown_format_is_refused(tmp_path):
    with pytest.raises(ValueError, match="give one of auto, wiki, json, jsonl, text, text_file"):
        choose_source(InputStream(written(tmp_path, "")), "wikki")


@pytest.mark.parametrize("text", [json.dumps([RECORD]), json.dumps(RECORD) + "\n"])
def test_a_key_that_the_records_do_not_have_is_refused(tmp_path, text):
    path = written(tmp_path, text)
    options = SourceOptions(text_key="body")
    with pytest.raises(
        ValueError, match=r"no text at key 'body'; its keys: id, title, content"
    ) as e:
        choose_source(InputStream(path), options=options)
    assert str(e.value).startswith(path) and "--text_key" in str(e.value)


PARAGRAPH = b"A paragraph that is long enough to be one, and that says nothing else. " * 15
AG_NEWS = b'"3","A title","Text, and ""more"" of it."\n"4","Another","It goes on, and on."\n'
UTF7 = "今天北京的天气非常好。我们去公园散步。\n".encode("utf-7")
RANDOM = random.Random(0).randbytes(4000)
NOISE = "binary data; it holds no text"


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"%PDF-1.7\n", "PDF.*pdftotext"),
        (b"\n\xff%PDF-1.4\n%\xe2\xe3\n1 0 obj\n", "PDF.*pdftotext"),
        (b"\xef\xbb\xbf{\\rtf1\\ansi Text.}", "RTF.*pandoc"),
        (b"RIFF\x24\x10\0\0WEBPVP8 " + RANDOM, "a picture"),
        (b"BM" + RANDOM, NOISE),
        (b"\xff\xfb\x90d" + RANDOM, NOISE),
        (zlib.compress(b"A text."), "zlib"),
        (b"\x03\x0b\0\0\0\0\0\0" + b'{"w":{"dtype":"F32"}}' * 99, "safetensors"),
        (b"\xa7\x0d\x0d\x0a\0\0\0\0\xe3" + b"name\0\0os.path\xe9\0" * 9, NOISE),
        (b"<TEI>\n<text><p>%b</p></text>\n</TEI>" % PARAGRAPH, "XML.*xmllint"),
        (b"<corpus><article>%b</article></corpus>" % PARAGRAPH, "XML.*xmllint"),
        (b"<DOC>\n<DOCNO> 1 </DOCNO>\n<TEXT>\n%b\n</TEXT>\n</DOC>\n" % PARAGRAPH, "XML"),
        (b"<page>\n<title>T</title>\n<id>3</id>\n<text>%b" % (PARAGRAPH * 99), "XML"),
        (b"<!-- saved -->\n<!-- -->\n<div>%b</div>\n" % PARAGRAPH, "HTML.*trafilatura"),
        (b"<p>%b</p>\n<p>%b</p>\n" % (PARAGRAPH, PARAGRAPH), "HTML.*trafilatura"),
        (b"N\bNA\bAM\bME\bE\n  _\bf_\bo_\bo - a name\n", "overstrikes.*col -bx"),
        (b"\x1b[1mNAME\x1b[0m\n\x1b[4mfoo\x1b[0m, \x1b[1mbar\x1b[0m\n", "terminal.*ansi2txt"),
        (UTF7 * 9, "UTF-7.*--encoding utf-7"),
        (b"% a comment\n\\documentclass{article}\n", "LaTeX.*pandoc"),
        (b"From j@x.org Mon Jan  1 00:00:00 2024\nSubject: A\n\nText.\n", "mailbox"),
        (AG_NEWS, "CSV table.*pandas"),
        (AG_NEWS.replace(b'"', b"").replace(b", ", b" "), "CSV table.*pandas"),
        (b"id;text\n1;One text, and more.\n2;Another.\n", "CSV table.*sep=';'"),
        (b"id|text|label\n1|One text.|0\n2|Another.|1\n", "CSV table.*sep='|'"),
        (b"text (en),#1 String\n" + b'"A text, it is.",Another.\n' * 9, "CSV table"),
        (b'no end of it\t0\n"a quote\t1\nand so on\t1\n', "TSV table"),
        (b"# text = One\n" + b"1\tOne\tone\tNUM\t_\n" * 2 + b"\n# text = Two\n", "TSV table"),
        (b"Rar!\x1a", "rar.*unrar"),
        (b"7z\xbc\xaf\x27\x1c", "7z"),
        (b"{\\rtf1\\ansi Text.}", "RTF.*pandoc"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "Office.*soffice"),
        (b"WARC/1.0\r\nWARC-Type: response\r\n", "WARC.*trafilatura"),
        (bytes(range(32)) * 9, "binary data"),
        (b'<mediawiki xmlns="http://x" version="0.11">\n<page>', "MediaWiki.*wikiextractor"),
        (b'<?xml version="1.0"?>\n<mediawiki>\n', "MediaWiki.*wikiextractor"),
        (b'<?xml version="1.0"?>\n<TEI><text>A text.</text></TEI>\n', "XML.*xmllint"),
        (b"\n<!DOCTYPE html>\n<html><body>A text.", "HTML.*trafilatura"),
        (b"<div><p>One.</p>\n<p>Two.</p>\n<p>Three.</p></div>\n", "HTML.*trafilatura"),
        (b"{'id': 1, 'text': 'A text.'}\n{'id': 2, 'text': 'None'}\n", "dictionaries.*json"),
        (b'{"id": 1, "text": None}\n', "dictionaries.*json"),
        (b'.\\" a comment\n.TH CAT 1\n.SH NAME\ncat\n', "manual page.*man"),
        (b"id,text\n" + b'1,"A text, it is."\n' * 9, "CSV table.*pandas"),
        (b"id\ttext\n" + b"1\tA text.\n" * 9, "TSV table.*pandas"),
        ("Les \u00e9l\u00e8ves fatigu\u00e9s.".encode("latin-1"), "UTF-8; give --encoding.*CP1252"),
    ],
)
def test_what_is_no_text_is_refused_in_one_line(tmp_path, data, what):
    with pytest.raises(ValueError, match=f"looks like.*{what}") as refusal:
        choose_source(InputStream(written(tmp_path, data)))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.tsv"])
def test_what_is_named_a_table_needs_one_record_to_be_one(tmp_path, name):
    delimiter = "\t" if "tsv" in name else ","
    path = written(tmp_path, f"id{delimiter}text\n", name)
    with pytest.raises(ValueError, match="table; write its texts"):
        choose_source(InputStream(path))


@pytest.mark.parametrize(("name", "kind"), [("a.format", "format"), ("a", "wiki")])
def test_joining_lines_that_are_not_joined_is_refused(tmp_path, name, kind):
    text = CASES["wiki"][0] if kind == "wiki" else "A sentence.\n"
    path = written(tmp_path, text, name)
    with pytest.raises(ValueError, match=f"--wrapped join: {path} is of --input_format {kind}"):
        choose_source(InputStream(path), options=SourceOptions(wrapped="join"))


def test_lines_that_look_like_sentences_are_joined_where_that_is_asked_for(tmp_path):
    path = written(tmp_path, ONE_A_LINE)
    source = choose_source(InputStream(path), options=SourceOptions(wrapped="join"))
    assert type(source) is WrappedSource


def test_inputs_are_found_in_subfolders_in_order(tmp_path):
    for name in ("b/wiki_01", "a/wiki_00", "a/wiki_02.partial", "a/other"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = find_inputs(str(tmp_path), "wiki_*")
    assert found == [str(tmp_path / "a/wiki_00"), str(tmp_path / "b/wiki_01")]


def test_formatted_copies_of_inputs_are_left_out(tmp_path):
    for name in ("wiki_00", "wiki_00.format", "wiki_01.format"):
        (tmp_path / name).touch()
    found = find_inputs(str(tmp_path), "wiki_*")
    assert found == [str(tmp_path / "wiki_00"), str(tmp_path / "wiki_01.format")]


@pytest.mark.parametrize(("folder", "pattern"), [("missing", "*"), (".", "none_*"), (".", "/x")])
def test_inputs_that_do_not_exist_are_refused(tmp_path, folder, pattern):
    with pytest.raises(ValueError, match=r"--input_(dir|regex)"):
        find_inputs(str(tmp_path / folder), pattern)


ONE_A_LINE = "Short one.\nIs it? \n\nA second document, of a few more words.\n他说：“走。”\n"
WRAPPED = (
    "A paragraph that an editor\nhas wrapped at thirty columns.\nIt goes on in the same way, so\n"
)
SEVERAL = "One sentence here. Another one there.\nA third. A fourth.\nA fifth. And a sixth one.\n"


@pytest.mark.parametrize(
    ("text", "kind"), [(ONE_A_LINE, FormatSource), (WRAPPED, TextSource), (SEVERAL, TextSource)]
)
def test_text_that_has_a_sentence_a_line_already_is_not_split_again(tmp_path, text, kind) -> None:
    assert type(choose_source(InputStream(written(tmp_path, text * 3, "a.txt")))) is kind
    assert type(choose_source(InputStream(written(tmp_path, text * 900, "long.txt")))) is kind


def test_links_to_folders_are_followed_and_each_folder_is_read_once(tmp_path):
    for name in ("in/a/one", "elsewhere/sub/two"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    folder = tmp_path / "in"
    for link, target in [("b", "elsewhere"), ("c", "elsewhere"), ("0", "in/a"), ("a/up", "in")]:
        (folder / link).symlink_to(tmp_path / target)
    expected = [str(folder / "a/one"), str(folder / "b/sub/two")]
    assert find_inputs(str(folder), "*") == expected
    assert find_inputs(str(folder), "b/**/t*") == expected[1:]


def test_a_folder_that_cannot_be_read_is_refused_by_name(tmp_path, monkeypatch):
    (tmp_path / "closed").mkdir()
    (tmp_path / "a").touch()
    scan = os.scandir

    def scandir(path):
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(ValueError, match=r"--input_dir: .*closed: Permission denied"):
        find_inputs(str(tmp_path), "*")


def test_what_was_written_is_no_input(tmp_path):
    for name in ("a.txt", "out/a.txt.format"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert find_inputs(str(tmp_path), "*", str(tmp_path / "out")) == [str(tmp_path / "a.txt")]
    assert len(find_inputs(str(tmp_path), "*", str(tmp_path))) == 2
    with pytest.raises(ValueError, match=r"matches no file in .* outside of .*out"):
        find_inputs(str(tmp_path), "*.format", str(tmp_path / "out"))


def test_a_glob_that_leaves_the_folder_is_refused(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "a.txt").touch()
    with pytest.raises(ValueError, match=r"--input_regex.*below --input_dir"):
        find_inputs(str(tmp_path / "in"), "../*.txt")


def test_a_regular_expression_is_taken_where_no_glob_matches(tmp_path):
    for name in ("wiki_00", "wiki_1x", "sub/wiki_07", "a.json", "wiki_[0-9]+"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    def names(pattern):
        found = find_inputs(str(tmp_path), pattern)
        return [path.removeprefix(f"{tmp_path}/") for path in found]

    assert names(r"wiki_\d+") == ["sub/wiki_07", "wiki_00"]
    assert names(r"sub/.+\d") == ["sub/wiki_07"]
    assert names(r"(a|b)\.json") == ["a.json"]
    assert names("wiki_0*") == ["sub/wiki_07", "wiki_00"]  # a glob, which matches
    with pytest.raises(ValueError, match="neither as a glob nor as a regular expression"):
        names(r"wiki_\d{3}")

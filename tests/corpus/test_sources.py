"""Readers: documents of each format, blocks of any size, damaged input."""

import itertools

import pytest

from minimoe_dist.corpus.blocks import Document, Problems
from minimoe_dist.corpus.sources import (
    FormatSource,
    WikiSource,
    choose_source,
    find_inputs,
    python_documentation,
    write_wiki,
)

WIKI = """<doc id="1" url="u?curid=1" title="A &amp; B">
A &amp; B

First paragraph &lt;here&gt;.
Second one.
</doc>
<doc id="2" url="" title="Empty">
Empty

</doc>
<doc id="3" url="" title='No title attribute'>
Text of the third.

</doc>
"""


def read(source, path, strict=False):
    """The documents of a file, parts put together, and the problems found."""
    problems = Problems(strict=strict)
    whole = []
    for block in source.blocks(str(path)):
        for document in source.documents(block, problems):
            if document.continues:
                whole[-1] = Document(whole[-1].title, whole[-1].lines + document.lines)
            else:
                whole.append(document)
    return whole, problems


def wiki_file(tmp_path, text=WIKI):
    path = tmp_path / "wiki_00"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_wiki_documents_have_titles_and_paragraphs(tmp_path):
    documents, _ = read(WikiSource(), wiki_file(tmp_path))
    assert documents == [
        Document("A & B", ["First paragraph <here>.", "Second one."]),
        Document("Empty", []),
        Document(None, ["Text of the third."]),
    ]


def test_wiki_text_outside_documents_is_noted(tmp_path):
    documents, problems = read(WikiSource(), wiki_file(tmp_path, "stray\n" + WIKI + "\nstray\n"))
    assert len(documents) == 3
    assert problems.counts == {"lines_outside_documents": 2}
    assert [message.split(":")[1] for message in problems.messages] == ["1", "17"]


def test_a_document_without_its_end_tag_is_kept(tmp_path):
    documents, _ = read(WikiSource(), wiki_file(tmp_path, WIKI.replace("</doc>\n", "")))
    assert [len(document.lines) for document in documents] == [2, 0, 1]


def test_format_documents_end_at_empty_lines(tmp_path):
    path = tmp_path / "x.format"
    path.write_bytes(b"\n\none.\ntwo.\n \nthree.\r\n\r\n\n\nfour.")
    documents, _ = read(FormatSource(), path)
    assert [document.lines for document in documents] == [["one.", "two."], ["three.\r"], ["four."]]


@pytest.mark.parametrize("size", [256, 300, 777, 1500])
@pytest.mark.parametrize("kind", ["wiki", "format"])
def test_blocks_of_any_size_give_the_same_lines(tmp_path, kind, size):
    documents = [
        Document(
            f"T{number}", [f"Line {line} of {number}, {'é。' * (line * 7)}" for line in range(n)]
        )
        for number, n in enumerate([1, 3, 0, 9, 2, 17, 1, 1])
    ]
    path = tmp_path / "input"
    if kind == "wiki":
        write_wiki(documents, str(path))
        source, whole = WikiSource(size, longest_sentence=16), WikiSource()
    else:
        path.write_text("\n\n".join("\n".join(d.lines) for d in documents) + "\n")
        source, whole = FormatSource(size, longest_sentence=16), FormatSource()
    blocks = list(source.blocks(str(path)))
    assert len(blocks) > 3
    assert max(block.length for block in blocks) <= size
    assert [b.offset + b.length for b in blocks[:-1]] == [b.offset for b in blocks[1:]]
    joined = ["".join("".join(d.lines).split()) for d in read(source, path)[0]]
    assert joined == ["".join("".join(d.lines).split()) for d in read(whole, path)[0]]


@pytest.mark.parametrize("source", [FormatSource(), WikiSource()])
def test_line_numbers_count_across_blocks(tmp_path, source):
    path = tmp_path / "input"
    lines = ["<doc id='1'>"] + ["good line of text"] * 200_000
    lines[150_000] = "bad \xff line"
    path.write_bytes("\n".join(lines).encode("latin-1"))
    _, problems = read(source, path)
    assert problems.messages == [f"{path}:150001: invalid UTF-8"]


def test_invalid_utf8_is_replaced_and_counted(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"good\nb\xff\xfed\nfine\n")
    documents, problems = read(FormatSource(), path)
    assert documents[0].lines == ["good", "b\ufffd\ufffdd", "fine"]
    assert problems.counts == {"invalid_utf8_lines": 1}


def test_nul_bytes_are_removed_and_counted(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"a\0b\n\0c\n")
    documents, problems = read(FormatSource(), path)
    assert documents[0].lines == ["ab", "c"]
    assert problems.counts == {"nul_byte_lines": 2}


@pytest.mark.parametrize("data", [b"fine\nb\xffd\n", b"fine\nb\0d\n"])
def test_strict_reading_fails_with_file_and_line(tmp_path, data):
    path = tmp_path / "x"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f"{path}:2: "):
        read(FormatSource(), path, strict=True)


def test_a_byte_order_mark_is_dropped(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"\xef\xbb\xbftext\n")
    assert read(FormatSource(), path)[0][0].lines == ["text"]


@pytest.mark.parametrize(
    ("text", "kind"), [(WIKI, WikiSource), ("A sentence.\n", FormatSource), ("", FormatSource)]
)
def test_the_format_is_recognised(tmp_path, text, kind):
    assert isinstance(choose_source(str(wiki_file(tmp_path, text))), kind)


def test_json_is_not_taken_for_text(tmp_path):
    with pytest.raises(ValueError, match="looks like JSON"):
        choose_source(str(wiki_file(tmp_path, '{"id": 1}\n')))


def test_an_unknown_format_is_refused(tmp_path):
    with pytest.raises(ValueError, match="give one of auto, wiki, format"):
        choose_source(str(wiki_file(tmp_path)), "wikki")


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


def test_written_wiki_files_read_back(tmp_path):
    documents = [Document('He said "<&>"', ["a < b & c", "</doc>"]), Document("T", ["x"])]
    path = tmp_path / "deep" / "wiki_00"
    assert write_wiki(documents, str(path)) == 2
    assert read(WikiSource(), path)[0] == documents


def test_python_documentation_is_prose_in_a_fixed_order():
    documents = list(itertools.islice(python_documentation(), 60))
    assert documents == list(itertools.islice(python_documentation(), 60))
    paragraphs = [line for document in documents for line in document.lines]
    assert len(paragraphs) > 300
    assert not any(">>>" in line or "\n" in line or "``" in line for line in paragraphs)

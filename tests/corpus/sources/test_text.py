"""Text of sentences or paragraphs: documents, blocks of any size, damaged lines."""

import pytest

from minimoe_dist.corpus.blocks import Document
from minimoe_dist.corpus.reading import BlockOfSource, SentenceReader
from minimoe_dist.corpus.sentences import SentenceRules
from minimoe_dist.corpus.sources import (
    FormatSource,
    TextFileSource,
    TextSource,
    WikiSource,
    write_wiki,
)
from minimoe_dist.corpus.streams import InputStream
from tests.corpus.sources.documents import read, sentences


def test_format_documents_end_at_empty_lines(tmp_path):
    path = tmp_path / "x.format"
    path.write_bytes(b"\n\none.\ntwo.\n \nthree.\r\n\r\n\n\nfour.")
    documents, _ = read(FormatSource(), path)
    assert [document.lines for document in documents] == [["one.", "two."], ["three."], ["four."]]


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
    blocks = list(source.blocks(InputStream(str(path))))
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


PARAGRAPHS = "First one. Second one.\n第一句。第二句！\n\nOther document.\n"


def test_lines_of_formatted_text_are_sentences(tmp_path):
    path = tmp_path / "x"
    path.write_text(PARAGRAPHS)
    assert sentences(FormatSource(), path) == [
        ["First one. Second one.", "第一句。第二句！"],
        ["Other document."],
    ]


def test_lines_of_text_are_split_into_sentences(tmp_path):
    path = tmp_path / "x"
    path.write_text(PARAGRAPHS)
    assert sentences(TextSource(), path) == [
        ["First one.", "Second one.", "第一句。", "第二句！"],
        ["Other document."],
    ]


@pytest.mark.parametrize("size", [64, 1 << 20])
def test_a_file_may_be_one_document(tmp_path, size):
    path = tmp_path / "x"
    path.write_text(PARAGRAPHS * 9)
    (document,) = sentences(TextFileSource(size, longest_sentence=4), path)
    assert len("".join(document).replace(" ", "")) == len("".join(PARAGRAPHS.split())) * 9


@pytest.mark.parametrize("end", ["\r", "\x0b", "\x85", "\u2028", "\u2029"])
@pytest.mark.parametrize("size", [777, 1 << 20])
def test_lines_end_as_the_file_ends_them(tmp_path, end, size):
    path = tmp_path / "x"
    lines = [f"Line {number} ends here, 第{number}行。" for number in range(5000)]
    path.write_text("".join(f"{line}{end}" for line in lines), newline="")
    documents, _ = read(TextFileSource(size, longest_sentence=16), path)
    assert [line for document in documents for line in document.lines] == lines


def test_other_line_ends_inside_lines_do_not_end_them(tmp_path):
    path = tmp_path / "x"
    path.write_text("One\u2028line.\nAnother\x85line\x0bhere.\n")
    assert read(FormatSource(), path)[0][0].lines == ["One\u2028line.", "Another\x85line\x0bhere."]


def test_the_usual_minimum_leaves_short_lines_that_are_sentences_and_another_does_not(tmp_path):
    path = tmp_path / "x"
    path.write_text("Short one.\nOne of five words here.\n")
    (block,) = FormatSource().blocks(InputStream(str(path)))
    for minimum, kept in ((8, 2), (5, 1)):
        reader = SentenceReader(SentenceRules(minimum_words=minimum), strict=False)
        result = reader(BlockOfSource(FormatSource(), block))
        assert len(result.documents[0]) == kept
        assert result.problems.counts["short_sentences"] == 2 - kept

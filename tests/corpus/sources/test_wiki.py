"""wikiextractor's text: documents, titles, what stands outside of them."""

import pytest

from minimoe_dist.corpus.blocks import Document
from minimoe_dist.corpus.sources import WikiSource, write_wiki
from tests.corpus.sources.documents import read

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


def test_text_outside_documents_is_kept_and_counted(tmp_path):
    documents, problems = read(WikiSource(), wiki_file(tmp_path, "stray\n" + WIKI + "\nmore\n"))
    assert [document.lines for document in documents if not document.title] == [
        ["stray"],
        ["Text of the third."],
        ["more"],
    ]
    assert problems.counts == {"text_outside_documents": 2, "unclosed_documents": 2}
    assert [message.split(":")[1] for message in problems.messages] == ["1", "2", "17", "18"]


def test_documents_without_their_end_tags_are_kept_and_counted(tmp_path):
    text = WIKI.replace("</doc>\n", "")
    documents, problems = read(WikiSource(), wiki_file(tmp_path, text))
    assert [len(document.lines) for document in documents] == [2, 0, 1]
    assert problems.counts == {"unclosed_documents": 3}


RAW = """<doc id="1" url="" title="Tags">
Tags

Before the tag.
</doc>
After the tag.
</doc>
</doc>
<doc id="2" url="" title="Two">
Two

A </doc> inside a line.
</doc> at the beginning of one.
</doc>
"""


@pytest.mark.parametrize("size", [64, 100, 128, 200, 1 << 20])
def test_raw_and_unbalanced_tags_swallow_nothing_and_are_counted(tmp_path, size):
    source = WikiSource(size, longest_sentence=4)
    documents, problems = read(source, wiki_file(tmp_path, RAW * 3))
    assert [document.lines for document in documents] == 3 * [
        ["Before the tag."],
        ["After the tag."],
        ["A </doc> inside a line.", "</doc> at the beginning of one."],
    ]
    assert problems.counts == {
        "text_outside_documents": 3,
        "closing_tags_without_documents": 3,
        "closing_tags_inside_lines": 6,
    }


def test_written_wiki_files_read_back(tmp_path):
    documents = [Document('He said "<&>"', ["a < b & c", "</doc>"]), Document("T", ["x"])]
    path = tmp_path / "deep" / "wiki_00"
    assert write_wiki(documents, str(path)) == 2
    assert read(WikiSource(), path)[0] == documents


ON_ONE_LINE = """<doc id="1" url="u" title="A">Text "here" > there.
Its <second> line.
</doc>
<doc id="2" title=""Heroes" (album)" revid="3">All of "it" &amp; more.</doc>
<doc id="3" url="http://x.org/?a=1" title="C">
C

<doc id=...> is the tag that opens each document.
The end.
</doc>
"""


@pytest.mark.parametrize("size", [100, 128, 200, 1 << 20])
def test_what_follows_a_tag_in_its_line_is_text_and_what_is_no_tag_too(tmp_path, size):
    source = WikiSource(size, longest_sentence=4)
    documents, problems = read(source, wiki_file(tmp_path, ON_ONE_LINE * 3))
    assert documents == 3 * [
        Document("A", ['Text "here" > there.', "Its <second> line."]),
        Document('"Heroes" (album)', ['All of "it" & more.']),
        Document("C", ["<doc id=...> is the tag that opens each document.", "The end."]),
    ]
    assert not problems.counts

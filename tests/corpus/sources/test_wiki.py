"""wikiextractor's text: documents, titles, what stands outside of them."""

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


def test_wiki_text_outside_documents_is_noted(tmp_path):
    documents, problems = read(WikiSource(), wiki_file(tmp_path, "stray\n" + WIKI + "\nstray\n"))
    assert len(documents) == 3
    assert problems.counts == {"lines_outside_documents": 2}
    assert [message.split(":")[1] for message in problems.messages] == ["1", "17"]


def test_a_document_without_its_end_tag_is_kept(tmp_path):
    documents, _ = read(WikiSource(), wiki_file(tmp_path, WIKI.replace("</doc>\n", "")))
    assert [len(document.lines) for document in documents] == [2, 0, 1]


def test_written_wiki_files_read_back(tmp_path):
    documents = [Document('He said "<&>"', ["a < b & c", "</doc>"]), Document("T", ["x"])]
    path = tmp_path / "deep" / "wiki_00"
    assert write_wiki(documents, str(path)) == 2
    assert read(WikiSource(), path)[0] == documents

"""Text in other encodings than UTF-8: what is certain, what has to be declared."""

import json

import pytest

from minimoe_dist.corpus.reading import Inputs, ReadingOptions
from minimoe_dist.corpus.sources import FormatSource, SourceOptions, TextSource, choose_source
from minimoe_dist.corpus.streams import InputStream
from minimoe_dist.data.encodings import certain_encoding
from tests.corpus.sources.documents import read

SIMPLIFIED = "今天 北京 的 天气 非常 好 。 我们 去 公园 散步 。 他 说 这 是 一个 很 大 的 问题 。\n"
TRADITIONAL = "今天北京的天氣非常好。我們去公園散步吧！他說這是一個很大的問題。\n"
WESTERN = "Les élèves sont très fatigués à la fin de l'été.\n"
KOREAN = "대한민국의 수도는 서울이며 인구가 가장 많은 도시이다.\n"
JAPANESE = "今日はとても天気がいいですね。私は学校に行きます。東京の人口は多い。\n"
CYRILLIC = "Все счастливые семьи похожи друг на друга.\n"


@pytest.mark.parametrize(
    ("text", "encoding", "certain"),
    [
        (SIMPLIFIED, "gbk", "gb18030"),
        (TRADITIONAL, "gbk", "gb18030"),
        (TRADITIONAL, "big5", "big5hkscs"),
        (SIMPLIFIED, "utf-8", None),
        (SIMPLIFIED, "utf-16", "utf-16"),
        (SIMPLIFIED, "utf-32", "utf-32"),
        (WESTERN, "utf-16-le", "utf-16le"),
        (WESTERN, "utf-16-be", "utf-16be"),
        (WESTERN, "latin-1", None),
        ("In ~{braces~} nothing is Chinese, and ~{this~} is none either.\n", "ascii", None),
        (SIMPLIFIED, "hz", "hz"),
        (JAPANESE, "iso2022_jp", "iso2022_jp_2"),
        (KOREAN, "iso2022_kr", "iso2022_kr"),
        (KOREAN, "euc-kr", None),
        (JAPANESE, "euc-jp", None),
        (JAPANESE, "cp932", None),
        (CYRILLIC, "cp1251", None),
        (CYRILLIC, "koi8-r", None),
    ],
)
def test_only_what_is_certain_is_taken_for_certain(text, encoding, certain):
    assert certain_encoding((text * 5).encode(encoding)) == certain


@pytest.mark.parametrize(
    ("text", "encoding", "declared"),
    [
        (SIMPLIFIED, "gbk", None),
        (TRADITIONAL, "big5", None),
        (SIMPLIFIED, "utf-16", None),
        (SIMPLIFIED, "hz", None),
        (JAPANESE, "iso2022_jp", None),
        (KOREAN, "iso2022_kr", None),
        (WESTERN, "latin-1", "latin-1"),
        (JAPANESE, "cp932", "cp932"),
        (SIMPLIFIED, "utf-16-le", "utf-16le"),
    ],
)
def test_text_is_read_in_its_encoding(tmp_path, text, encoding, declared):
    path = tmp_path / "x.txt"
    path.write_bytes((text * 5).encode(encoding))
    (work, *_) = Inputs([str(path)], ReadingOptions(encoding=declared)).work()
    (document,) = work.source.documents(work.block, None)
    assert document.lines == [text.rstrip("\n")] * 5


def test_records_are_read_in_their_encoding(tmp_path):
    path = tmp_path / "x.jsonl"
    record = json.dumps({"title": "天气", "text": SIMPLIFIED}, ensure_ascii=False)
    path.write_bytes(f"{record}\n".encode("gbk") * 3)
    stream = InputStream(str(path))
    source = choose_source(stream)
    (block,) = source.blocks(stream)
    assert [document.title for document in source.documents(block, None)] == ["天气"] * 3


def test_bytes_that_the_encoding_does_not_have_are_counted(tmp_path):
    path = tmp_path / "x.txt"
    path.write_bytes((SIMPLIFIED * 5).encode("gbk") + b"\xff\n")
    stream = InputStream(str(path))
    stream.transcode("gb18030")
    (block,) = TextSource().blocks(stream)
    documents, problems = read(TextSource(), path, blocks=[block])
    assert documents[0].lines[-1] == "\ufffd"
    assert problems.counts == {"invalid_gb18030_lines": 1}
    assert problems.messages == [f"{path}:6: invalid gb18030"]


def test_an_unknown_encoding_is_refused():
    with pytest.raises(ValueError, match="--encoding 'utf-9'"):
        ReadingOptions(encoding="utf-9")


def test_a_declared_encoding_is_not_doubted(tmp_path):
    path = tmp_path / "x.txt"
    path.write_bytes((WESTERN * 5).encode("latin-1"))
    stream = InputStream(str(path))
    assert type(choose_source(stream, options=SourceOptions(encoding="utf-8"))) is FormatSource


def test_a_declared_encoding_that_wants_a_byte_order_mark_is_refused_without_one(tmp_path):
    path = tmp_path / "x.txt"
    path.write_bytes((WESTERN * 5).encode("utf-16-le"))
    with pytest.raises(ValueError, match=r"x\.txt: --encoding utf-16: .*utf-16le"):
        choose_source(InputStream(str(path)), options=SourceOptions(encoding="utf-16"))

"""A guess at the encoding of bytes that are no UTF-8."""

import pytest

from minimoe_dist.data.likely_encoding import likely_encoding

TEXTS = {
    "ISO-8859-1": "De heer André Peeters reist naar België. Müller fährt über Köln.",
    "WINDOWS-1252": "“Zoë” said – naïve",
    "GB18030": "他说：“你好！”然后走了。今天天气很好，我们去公园玩。中国人民银行2020年发布",
    "BIG5": "他說：「你好！」然後走了。今天天氣很好，我們去公園玩。中國人民銀行2020年發布",
    "SHIFT_JIS": "昨日、私たちは東京でアンナに会いました。天気はとても良かったです。",
    "WINDOWS-1251": "Вчера мы видели Анну в Москве. Это было хорошо.",
    "KOI8-R": "Вчера мы видели Анну в Москве. Это было хорошо.",
    "ISO-8859-7": "Χθες είδαμε την Άννα στην Αθήνα. Ήταν πολύ ωραία και ο καιρός ήταν καλός.",
    "UTF-16": "文本,星\n书,1",
}


@pytest.mark.parametrize("encoding", TEXTS)
def test_a_text_gets_its_encodings_name(encoding: str) -> None:
    assert likely_encoding([TEXTS[encoding].encode(encoding)]) == encoding

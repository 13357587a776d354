"""A guess at the encoding of bytes that are no UTF-8."""

import pytest

from minimoe_dist.data.encodings import likely_encoding

TEXTS = {
    "CP1252": "De heer André Peeters reist naar België. Müller fährt über Köln.",
    "GB18030": "他说：“你好！”然后走了。今天天气很好，我们去公园玩。中国人民银行2020年发布",
    "BIG5": "今天天氣很好，我們去公園玩。",
    "BIG5HKSCS": "他說：「你好！」然後走了。今天天氣很好，我們去公園玩。中國人民銀行2020年發布",
    "EUC-JP": "昨日、私たちは東京でアンナに会いました。天気はとても良かったです。",
    "CP949": "어제 우리는 서울에서 안나를 만났습니다. 날씨가 아주 좋았습니다.",
    "CP932": "昨日、私たちは東京でアンナに会いました。天気はとても良かったです。",
    "CP1251": "Вчера мы видели Анну в Москве. Это было хорошо.",
    "KOI8-R": "Вчера мы видели Анну в Москве. Это было хорошо.",
    "CP1253": "Χθες είδαμε την Άννα στην Αθήνα. Ήταν πολύ ωραία και ο καιρός ήταν καλός.",
    "CP1250": "Hlavním městem České republiky je Praha. Žluťoučký kůň úpěl ďábelské ódy.",
    "CP1254": "Türkiye'nin başkenti Ankara'dır. Ekonomi çok hızlı gelişiyor, ığdır şehir.",
    "CP1255": "בירת ישראל היא ירושלים. הכלכלה מתפתחת במהירות רבה מאוד.",
    "CP1256": "عاصمة مصر هي القاهرة. الاقتصاد يتطور بسرعة كبيرة جدا.",
    "CP874": "เมืองหลวงของประเทศไทยคือกรุงเทพมหานคร เศรษฐกิจพัฒนาอย่างรวดเร็ว",
    "UTF-16": "文本,星\n书,1",
    "UTF-16LE": "今天天气很好，我们去公园玩。中国人民银行发布",
}


@pytest.mark.parametrize("encoding", TEXTS)
def test_a_text_gets_its_encodings_name(encoding: str) -> None:
    assert likely_encoding([TEXTS[encoding].encode(encoding)]) == encoding

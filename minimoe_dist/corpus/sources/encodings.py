"""Which encoding a text is in, where its bytes leave no doubt."""

from __future__ import annotations

import codecs
import re

_BYTE_ORDER_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_FEWEST_UNITS, _ZERO_SHARE = 8, 0.4
_HIGH_BYTES = re.compile(rb"[\x80-\xff]+")
_BROKEN_UTF8 = 0.2
# So few bytes are damage, and no other encoding.
_STRAY_BYTES, _STRAY_SHARE = 2, 0.001
_COMMON_SHARE, _FEWEST_CHARACTERS = 0.3, 20
# The commonest characters of modern Chinese: about half of any text of some length.
_SIMPLIFIED = frozenset(
    "的一是不了在人有我他这中大来上国个到说们为子和你地出道也时年得就那要下以生会自着去之过家学对可"
    "她里后小么心多天而能好都然没日于起还发成事只作当想看文无开手十用主行方又如前所本见经头面公同三"
    "已老从动两长知民样现分将外但身些与高意进把法此实回二理美点月明其种声全工己话儿者向情部正名定女"
    "问力机给等几很业最间新什打便位因重被走电四第门相次东政海口使教西再平真听世气信北少关并内加化由"
)
_TRADITIONAL = frozenset(
    "的一是不了在人有我他這中大來上國個到說們為子和你地出道也時年得就那要下以生會自著去之過家學對可"
    "她裡後小麼心多天而能好都然沒日於起還發成事只作當想看文無開手十用主行方又如前所本見經頭面公同三"
    "已老從動兩長知民樣現分將外但身些與高意進把法此實回二理美點月明其種聲全工己話兒者向情部正名定女"
    "問力機給等幾很業最間新什打便位因重被走電四第門相次東政海口使教西再平真聽世氣信北少關並內加化由"
)
_CANDIDATES = (
    "gb18030", "big5hkscs", "cp932", "euc-jp", "euc-kr", "cp1252", "cp1251", "latin-1",
)  # fmt: skip
_CHINESE = {"gb18030": _SIMPLIFIED | _TRADITIONAL, "big5hkscs": _TRADITIONAL}


def certain_encoding(beginning: bytes) -> str | None:
    """The encoding of a text by its first bytes, if it is certain; None for UTF-8 and for doubt.

    UTF-16 and UTF-32 are certain by their byte order mark, UTF-16 also by the zero byte that
    every other byte of Western text is. GBK (gb18030) and Big5 are certain where all bytes can
    be read so and the commonest Chinese characters come out as often as in any Chinese text.
    """
    for mark, encoding in _BYTE_ORDER_MARKS.items():
        if beginning.startswith(mark):
            return encoding
    if (wide := _utf16(beginning)) is not None:
        return wide
    if is_utf8(beginning):
        return None
    certain = [name for name, common in _CHINESE.items() if _is_chinese(beginning, name, common)]
    return certain[0] if len(certain) == 1 else None


def is_utf8(beginning: bytes) -> bool:
    """Whether what is no ASCII at a file's beginning is UTF-8, but for some damage."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(beginning)
        return True
    except UnicodeDecodeError:
        pass
    high = sum(map(len, _HIGH_BYTES.findall(beginning)))
    text = codecs.getincrementaldecoder("utf-8")("ignore").decode(beginning)
    sound = sum(len(character.encode()) for character in text if character > "\x7f")
    broken = high - sound
    return broken <= max(_BROKEN_UTF8 * high, _STRAY_BYTES, _STRAY_SHARE * len(beginning))


def likely_encodings(beginning: bytes) -> list[str]:
    """Encodings in which a text can be read without a fault, likely ones first."""
    fitting = [name for name in _CANDIDATES if _decoded(beginning, name) is not None]
    high = sum(map(len, _HIGH_BYTES.findall(beginning)))
    # Accented letters stand alone between ASCII ones; bytes of Asian text stand in rows.
    is_western = high < 2 * len(_HIGH_BYTES.findall(beginning))
    return sorted(fitting, key=lambda name: (name in ("cp1252", "latin-1")) != is_western)


def _utf16(beginning: bytes) -> str | None:
    units = len(beginning) // 2
    if units < _FEWEST_UNITS:
        return None
    for offset, encoding in ((1, "utf-16-le"), (0, "utf-16-be")):
        zeros = beginning[offset::2].count(0) / units
        others = beginning[1 - offset :: 2].count(0) / units
        if zeros >= _ZERO_SHARE and others < 0.01:
            return encoding
    return None


def _is_chinese(beginning: bytes, encoding: str, common: frozenset[str]) -> bool:
    text = _decoded(beginning, encoding)
    if text is None:
        return False
    characters = [character for character in text if "\u3400" <= character <= "\u9fff"]
    known = sum(character in common for character in characters)
    return len(characters) >= _FEWEST_CHARACTERS and known >= _COMMON_SHARE * len(characters)


def _decoded(beginning: bytes, encoding: str) -> str | None:
    """The text, its last character maybe cut off; None if it cannot be read."""
    try:
        return codecs.getincrementaldecoder(encoding)().decode(beginning)
    except UnicodeDecodeError:
        return None

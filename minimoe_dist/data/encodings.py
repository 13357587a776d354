"""Tells which encoding a text is in: for certain by its bytes, or as a guess for messages."""

import codecs
import re
from collections.abc import Iterable

_BYTE_ORDER_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_SHIFTS = {b"\x1b$B": "iso2022_jp_2", b"\x1b$@": "iso2022_jp_2", b"\x1b$)C": "iso2022_kr"}
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
# Python's names of the encodings that text is handed out in, and iconv's; where a few words could
# be in several, the one that is named first is the likeliest.
_ENCODINGS = {
    "utf_16": "UTF-16",
    "gb18030": "GB18030",
    "big5": "BIG5",
    "cp932": "CP932",
    "euc_jp": "EUC-JP",
    "cp949": "CP949",
    "cp1252": "CP1252",
    "cp1251": "CP1251",
    "koi8_r": "KOI8-R",
    "koi8_u": "KOI8-U",
    "cp1250": "CP1250",
    "cp1253": "CP1253",
    "cp1254": "CP1254",
    "cp1255": "CP1255",
    "cp1256": "CP1256",
    "cp1257": "CP1257",
    "cp1258": "CP1258",
    "cp866": "CP866",
    "cp874": "CP874",
    "iso8859_2": "ISO8859-2",
    "iso8859_5": "ISO8859-5",
    "utf_16_le": "UTF-16LE",
    "utf_16_be": "UTF-16BE",
}
_MOST_BYTES = 1 << 16
_CHINESE = {"gb18030": _SIMPLIFIED | _TRADITIONAL, "big5hkscs": _TRADITIONAL}


def certain_encoding(beginning: bytes) -> str | None:
    """Tells a text's encoding by its first bytes, if that is certain; None for UTF-8 and in doubt.

    UTF-16 and UTF-32 are certain by their byte order mark, UTF-16 also by the zero byte that
    every other byte of Western text is. GBK (gb18030) and Big5 are certain where all bytes can
    be read so and the commonest Chinese characters come out as often as in any Chinese text; so is
    HZ. ISO-2022 is certain by its escape sequences.
    """
    for mark, encoding in _BYTE_ORDER_MARKS.items():
        if beginning.startswith(mark):
            return encoding
    if (wide := _utf16(beginning)) is not None:
        return wide
    if beginning.isascii():
        return _shifted(beginning)
    if is_utf8(beginning):
        return None
    certain = [name for name, common in _CHINESE.items() if _is_chinese(beginning, name, common)]
    return certain[0] if len(certain) == 1 else None


def is_utf8(beginning: bytes) -> bool:
    """Tells whether what is no ASCII at a file's beginning is UTF-8, but for some damage."""
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


def likely_encoding(lines: Iterable[bytes]) -> str | None:
    """Guesses a text's encoding, as a name that ``iconv -f`` and Python take.

    It is a guess, for messages that name a remedy; nothing is decoded by it.

    Args:
        lines: of a text that is no UTF-8; those that are none suffice.

    Returns:
        The name; None where nothing fits.
    """
    # What is not needed for sound input is not imported for it.
    import charset_normalizer

    text = b"".join(lines)[:_MOST_BYTES]
    if (certain := certain_encoding(text)) is not None:
        return certain.upper()
    text = text[: text.rfind(b"\n") + 1] or text  # without a character that is cut off
    ranked = list(_ENCODINGS)
    guesses = charset_normalizer.from_bytes(text, cp_isolation=ranked)
    guess = guesses.best()
    if guess is None:
        return None
    if not guess.coherence:  # no language was recognised
        guess = min(guesses, key=lambda match: (match.chaos, ranked.index(match.encoding)))
    is_western = _decoded(text, "cp1252") == str(guess)
    return _ENCODINGS["cp1252" if is_western else guess.encoding]


def _utf16(beginning: bytes) -> str | None:
    units = len(beginning) // 2
    if units < _FEWEST_UNITS:
        return None
    for offset, encoding in ((1, "utf-16le"), (0, "utf-16be")):
        zeros = beginning[offset::2].count(0) / units
        other_zeros = beginning[1 - offset :: 2].count(0) / units
        if zeros >= _ZERO_SHARE and other_zeros < 0.01:
            return encoding
    return None


def _shifted(beginning: bytes) -> str | None:
    """Tells the encoding of Asian text that is ASCII with shift sequences; None for ASCII."""
    for shift, encoding in _SHIFTS.items():
        if shift in beginning and _decoded(beginning, encoding) is not None:
            return encoding
    is_hz = b"~{" in beginning and _is_chinese(beginning, "hz", _SIMPLIFIED)
    return "hz" if is_hz else None


def _is_chinese(beginning: bytes, encoding: str, common: frozenset[str]) -> bool:
    text = _decoded(beginning, encoding)
    if text is None:
        return False
    characters = [character for character in text if "\u3400" <= character <= "\u9fff"]
    num_common = sum(character in common for character in characters)
    return len(characters) >= _FEWEST_CHARACTERS and num_common >= _COMMON_SHARE * len(characters)


def _decoded(beginning: bytes, encoding: str) -> str | None:
    """Decodes bytes whose last character may be cut off; None if they cannot be decoded."""
    try:
        return codecs.getincrementaldecoder(encoding)().decode(beginning)
    except UnicodeDecodeError:
        return None

"""Which encoding bytes that are no UTF-8 are likely to be in, for messages that name a remedy.

This is a guess from how bytes above ASCII stand beside each other. Nothing is decoded by it.
"""

import re
from collections.abc import Iterable

_RUN = re.compile(rb"[\x80-\xff]+")
_GREEK_VOWEL = re.compile(rb"[\xe1-\xfe][\xdc-\xdf]")
_LETTERS_APART = 1.6  # bytes a run: accented letters mostly stand alone among ASCII letters
# What most characters of a text in a two-byte encoding are. GB18030's of daily use all have high
# second bytes, so that Big5's are none of them, and come first where both would do.
_TWO_BYTES = (
    ("GB18030", re.compile(rb"[\xb0-\xd7][\xa1-\xfe]|\xa3[\xa1-\xfe]|\xa1[\xa1-\xbf]")),
    ("SHIFT_JIS", re.compile(rb"[\x82\x83][\x40-\xfc]|[\x88-\x97][\x40-\xfc]|\x81[\x40-\x5c]")),
    ("BIG5", re.compile(rb"[\xa4-\xc6][\x40-\x7e\xa1-\xfe]|\xa1[\x40-\x4f]")),
)


def likely_encoding(lines: Iterable[bytes]) -> str:
    """A name that ``iconv -f`` takes.

    Args:
        lines: of a text that is no UTF-8; those that are none suffice.
    """
    text = b"".join(lines)
    if text.startswith((b"\xff\xfe", b"\xfe\xff")) or text.count(0) > len(text) / 5:
        return "UTF-16"
    runs = _RUN.findall(text)
    if not runs or sum(map(len, runs)) / len(runs) < _LETTERS_APART:
        return "WINDOWS-1252" if re.search(rb"[\x80-\x9f]", text) else "ISO-8859-1"
    shares = {
        name: _covered(pattern, text)
        for name, pattern in _TWO_BYTES
        if _decodes(text, name.lower().replace("shift_jis", "cp932"))
    }
    best = max(shares, key=lambda name: shares[name], default=None)
    if best is not None and shares[best] > 0.9:
        return best
    return _cyrillic_or_greek(b"".join(runs), text)


def _cyrillic_or_greek(high: bytes, text: bytes) -> str:
    # Lower-case letters are the lower half of the Cyrillic letters in one, the upper in the others.
    if sum(byte < 0xE0 for byte in high) > len(high) / 2:
        return "KOI8-R"
    return "ISO-8859-7" if len(_GREEK_VOWEL.findall(text)) > len(high) / 40 else "WINDOWS-1251"


def _covered(pattern: re.Pattern[bytes], text: bytes) -> float:
    """The share of bytes above ASCII that a pattern's characters take."""
    high = sum(byte > 127 for byte in text)
    taken = sum(byte > 127 for found in pattern.findall(text) for byte in found)
    return taken / max(1, high)


def _decodes(text: bytes, encoding: str) -> bool:
    try:
        text.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True

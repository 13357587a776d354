"""Cuts text into sentences: English, Chinese and mixtures of both.

A sentence ends at `. ! ? ; …` before white space or the end of the line, and at `。！？；` or
`……` anywhere. Closing quotes and brackets stay with their sentence. Abbreviations, initials,
list numbers, decimals and URLs do not end one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_CLOSERS = "\"'”’»)\\]}」』）】》〉"
# Scripts that put no spaces between words: here characters are counted, not words.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff"
)
_ASCII_END = re.compile(r"[.!?;]+[\"')\]}]* (?=\S)")
_SPACED_END = re.compile(rf"[.!?;…]+[{_CLOSERS}]* (?=\S)")
_ANY_END = re.compile(
    rf"(?:[。！？；]|……)[。！？；…!?.]*[{_CLOSERS}]*\s*"
    rf"|[.!?;…]+[{_CLOSERS}]* (?=\S)"
    rf"|[!?;]+[{_CLOSERS}]*(?=[{_UNSPACED}])"
    rf"|(?<=[{_UNSPACED}])(?:[!?;]+[{_CLOSERS}]*(?=\w)|\.+[{_CLOSERS}]*(?=[{_UNSPACED}]))"
)
_ENDS_WITHOUT_SPACE = re.compile(f"[。！？；{_UNSPACED}]|……")
_UNSPACED_CHARACTER = re.compile(f"[{_UNSPACED}]")
_SPACED_WORD = re.compile(rf"[^\s{_UNSPACED}]+")
_OPENERS = "\"'([{“‘«「『（【《〈"


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# After these a sentence goes on, whatever follows.
_NEVER_END = _words(
    "mr mrs ms mme dr prof rev hon gov sen rep pres gen col lt capt cmdr adm sgt maj brig st mt ft "
    "messrs fr e.g i.e eg ie cf viz vs v al fig figs no nos vol vols ch chap sec sect art eq eqs "
    "pp p pl ed eds trans approx ca c circa resp incl op esp def dept univ assn bros ver"
)
# After these it ends only where a word follows that commonly opens a sentence.
_MAY_END = _words(
    "inc ltd corp co jr sr etc est dist div mfg intl natl jan feb mar apr jun jul aug sep sept oct "
    "nov dec mon tue tues wed thu thur thurs fri sat sun min max hr hrs sq ave blvd rd"
)
_STARTERS = _words(
    "The A An In On At By For From To With After Before During Since When While If As Although "
    "However But And Or So It Its He His She Her They Their We Our You Your I This That These "
    "Those There Here What Who How Why Some Many Most Another Both Each All No Not One Two"
)
_LOOKAHEAD = 64
_DOTTED = re.compile(r"(?:[^\W\d_]\.)+[^\W\d_]|[Pp]h\.D|[a-z]\.[a-z]+")


@dataclass(frozen=True)
class SentenceRules:
    """What counts as a sentence worth keeping.

    Attributes:
        minimum_words: words that a sentence of spaced words needs (more than seven, as in the
            published recipe).
        minimum_characters: characters that a sentence needs where words are not spaced
            (Chinese, Japanese, Thai, ...). In a mixed sentence both shares are added.
        longest: characters after which a sentence is cut at a space or, without one, anyway.
    """

    minimum_words: int = 8
    minimum_characters: int = 8
    longest: int = 16384

    def is_long_enough(self, sentence: str) -> bool:
        """Whether a sentence has enough words, or characters where words are not spaced."""
        if sentence.isascii():
            return sentence.count(" ") + 1 >= self.minimum_words
        characters = len(_UNSPACED_CHARACTER.findall(sentence))
        if not characters:
            return sentence.count(" ") + 1 >= self.minimum_words
        words = len(_SPACED_WORD.findall(sentence))
        share = words * self.minimum_characters + characters * self.minimum_words
        return share >= self.minimum_words * self.minimum_characters


def split_sentences(text: str, longest: int = SentenceRules.longest) -> list[str]:
    """The sentences of one line or paragraph, without white space at their ends.

    Runs of white space inside become one space. Nothing else is changed or left out.
    """
    text = " ".join(text.split())
    if not text:
        return []
    sentences = []
    start = 0
    for end in _ends(text):
        sentences.append(text[start:end].rstrip())
        start = end
    sentences.append(text[start:])
    if len(text) > longest:
        return [piece for sentence in sentences for piece in cut_long(sentence, longest)]
    return sentences


def cut_long(sentence: str, longest: int) -> Iterator[str]:
    """Cuts what is longer than `longest` characters, at its last space before that if any."""
    while len(sentence) > longest:
        end = sentence.rfind(" ", 1, longest + 1)
        end = end if end > 0 else longest
        yield sentence[:end]
        sentence = sentence[end:].lstrip()
    if sentence:
        yield sentence


def last_safe_cut(text: str, longest: int = SentenceRules.longest) -> int:
    """A position near the end of a line's beginning where the line may be cut in two.

    The sentences of both parts are those of the whole line, however it goes on; 0 if the text
    is too short to tell.
    """
    pieces = split_sentences(text, longest)
    # The last sentence may go on, and its first word may decide about the end before it.
    left_out = ""
    while pieces and len(left_out) < _LOOKAHEAD:
        left_out += pieces.pop()
    if not pieces:
        return 0
    # White space was collapsed: the place is found again by the other characters after it.
    solid = len(left_out) - left_out.count(" ")
    position = len(text)
    while solid:
        position -= 1
        solid -= not text[position].isspace()
    return position


def _ends(text: str) -> Iterator[int]:
    """Positions where a next sentence starts, rising, each inside the text.

    The text's white space is single spaces.
    """
    if text.isascii():
        return _spaced_ends(text, _ASCII_END)
    if _ENDS_WITHOUT_SPACE.search(text) is None:
        return _spaced_ends(text, _SPACED_END)
    return _mixed_ends(text)


def _spaced_ends(text: str, pattern: re.Pattern[str]) -> Iterator[int]:
    start = 0
    for match in pattern.finditer(text):
        if _latin_end_holds(text, start, match.start(), match.end()):
            start = match.end()
            yield start


def _mixed_ends(text: str) -> Iterator[int]:
    start = 0
    for match in _ANY_END.finditer(text):
        end = match.end()
        if text[match.start()] in "。！？；…" and not _is_latin_ellipsis(text, match):
            end = _before_opening_quote(text, start, match)
        elif text[end - 1] == " " and not _latin_end_holds(text, start, match.start(), end):
            continue
        if end < len(text):
            yield end
            start = end


def _is_latin_ellipsis(text: str, match: re.Match[str]) -> bool:
    return text[match.start()] == "…" and not text.startswith("……", match.start())


def _latin_end_holds(text: str, start: int, terminator: int, following: int) -> bool:
    """Whether the terminator of a sentence begun at `start` ends it, white space following."""
    mark = text[terminator]
    if mark == ";":
        return True
    after = text[following]
    if after.islower():
        return False
    if mark != "." or text[terminator + 1] in ".!?":
        return True
    word = text[text.rfind(" ", start, terminator) + 1 or start : terminator].lstrip(_OPENERS)
    if text[terminator + 1] != " ":
        # A bracket or quote closed after the full stop: no abbreviation ends there by itself.
        return word.lower() not in _NEVER_END
    if len(word) == 1 and word.isalpha():
        return word == "I" or _is_unspaced(word)
    lowered = word.lower()
    if lowered in _NEVER_END:
        return False
    if word.isdigit() and terminator - len(word) == start:
        return False
    if lowered in _MAY_END or ("." in word and _DOTTED.fullmatch(word)):
        return _next_word(text, following) in _STARTERS
    return True


def _is_unspaced(character: str) -> bool:
    return _UNSPACED_CHARACTER.match(character) is not None


def _next_word(text: str, start: int) -> str:
    end = text.find(" ", start)
    return text[start : end if end >= 0 else len(text)].strip(_OPENERS + ",.;:!?")


def _before_opening_quote(text: str, start: int, match: re.Match[str]) -> int:
    """Where the sentence of a Chinese terminator ends: a straight quote may open the next one."""
    end = match.end()
    quote = text.find('"', match.start(), end)
    if quote >= 0 and text.count('"', start, quote) % 2 == 0:
        return quote
    return end

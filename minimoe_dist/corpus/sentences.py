"""Cuts text into sentences: English, Chinese and mixtures of both.

A sentence ends at `. ! ? ; …` before white space or the end of the line, at `。！？；` or `……`
anywhere, and at `.` or `．` between Chinese characters. Closing quotes and brackets stay with
their sentence. Abbreviations, initials, list numbers, decimals and URLs do not end one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

from ..errors import UserError

_CLOSERS = "\"'”’»)\\]}」』）】》〉"
# Scripts that put no spaces between words: here characters are counted, not words.
_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff"
)
# Places where a sentence may end. A pattern that begins with one set of characters is searched
# for much faster than one that begins with a repetition or a choice.
# Group 1 marks what nearly always is an end: a full stop after four lower-case letters. A run of
# marks is tried from its first one on: from each, its time would grow with its square.
_ASCII_PLACE = re.compile(
    r"[.!?;](?:(?<=[a-z]{4}\.)( )(?![a-z])|(?<![.!?;]{2})[.!?;]*+[\"')\]}]*+ )"
)
_SPACED_PLACE = re.compile(
    rf"[.!?;…](?:(?<=[a-z]{{4}}\.)( )(?=[A-Z])|(?<![.!?;…]{{2}})[.!?;…]*+[{_CLOSERS}]*+ )"
)
_ANY_PLACE = re.compile(rf"[.!?;…。！？；｡．]([.!?;…。！？；｡．{_CLOSERS}]*) ?")
_CERTAIN_END = re.compile(
    rf"(?<![.!?;…。！？；｡．{_CLOSERS}])[。！？；｡]++ ?+(?=[^.!?;…。！？；｡．{_CLOSERS}，、：,:\s])"
    rf"|(?<=[a-z]{{4}})\. (?=[A-Z])"
)
_ENDS_WITHOUT_SPACE = re.compile(f"[。！？；｡．{_UNSPACED}]|……")
_UNSPACED_CHARACTER = re.compile(f"[{_UNSPACED}]")
_SPACED_WORD = re.compile(rf"[^\W{_UNSPACED}][^\s{_UNSPACED}]*")
_FULL_STOPS = frozenset("。！？；｡")
_LATIN_MARKS = frozenset(".!?;…．")
_MARKS_BESIDES_STOPS = frozenset("!?;")
# A sentence goes on before these: "(really!), he said".
_CONTINUERS = frozenset("，、：,:")
_OPENERS = "\"'([{“‘«「『（【《〈"
# White space besides the space, and runs of it: most text has none, and need not be cleaned.
_ASCII_SPACES = "\t\r\x0b\x0c\x1c\x1d\x1e\x1f"
_WIDE_SPACE = re.compile("[\x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]")


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
_ABBREVIATION_TAILS = frozenset(word[-4:] for word in _NEVER_END | _MAY_END)
_LOOKAHEAD = 64
_REACH = 16384
_DOTTED = re.compile(r"(?:[^\W\d_]\.)+[^\W\d_]|[Pp]h\.D|[a-z]\.[a-z]{1,3}")


@dataclass(frozen=True)
class SentenceRules:
    """Decides which sentences are worth keeping.

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

    def __post_init__(self) -> None:
        for name in ("minimum_words", "minimum_characters", "longest"):
            if getattr(self, name) < 1:
                raise UserError(f"--{name} {getattr(self, name)}: give 1 or more")

    def is_long_enough(self, sentence: str) -> bool:
        """Tells whether a sentence has enough words, or characters where words are not spaced."""
        if sentence.isascii() or not _UNSPACED_CHARACTER.search(sentence):
            return sentence.count(" ") + 1 >= self.minimum_words
        if self.minimum_words == self.minimum_characters:
            return _at_least(self.minimum_words).match(sentence) is not None
        characters = len(_UNSPACED_CHARACTER.findall(sentence))
        words = len(_SPACED_WORD.findall(sentence))
        share = words * self.minimum_characters + characters * self.minimum_words
        return share >= self.minimum_words * self.minimum_characters


@cache
def _at_least(count: int) -> re.Pattern[str]:
    """Matches what has so many unspaced characters and spaced words together."""
    unit = f"[{_UNSPACED}]|{_SPACED_WORD.pattern}+"
    return re.compile(rf"(?:[^\w{_UNSPACED}]*+(?:{unit})){{{count}}}")


def split_sentences(text: str, longest: int = SentenceRules.longest) -> list[str]:
    """Returns the sentences of one line or paragraph, without white space at their ends.

    Runs of white space inside become one space. Nothing else is changed or left out.
    """
    return split_lines([text.replace("\n", " ")], longest)


def split_lines(lines: Sequence[str], longest: int = SentenceRules.longest) -> list[str]:
    """Returns the sentences of several lines, each of which ends a sentence too."""
    text = "\n".join(lines)
    if not _is_clean(lines, text):
        lines = [" ".join(line.split()) for line in lines]
    sentences: list[str] = []
    if text.isascii():
        _split_spaced(lines, _ASCII_PLACE, sentences)
    else:
        for line in lines:
            if line.isascii():
                _split_spaced([line], _ASCII_PLACE, sentences)
            elif _ENDS_WITHOUT_SPACE.search(line) is None:
                _split_spaced([line], _SPACED_PLACE, sentences)
            else:
                _split_mixed(line, sentences)
    if len(text) > longest:
        return [piece for sentence in sentences for piece in cut_long(sentence, longest)]
    return sentences


def _is_clean(lines: Iterable[str], text: str) -> bool:
    """Tells whether lines, joined to the text, hold single spaces and no other white space."""
    # Plain loops, as any() would cost more than the searches.
    for line in lines:
        if line[:1] == " " or line[-1:] == " ":
            return False
    for space in _ASCII_SPACES:
        if space in text:
            return False
    return "  " not in text and (text.isascii() or _WIDE_SPACE.search(text) is None)


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
    """Returns a position near the end of a line's beginning where the line may be cut in two.

    The sentences of both parts are those of the whole line, however it goes on; 0 if the text
    is too short to tell.
    """
    if certain := _last_certain_end(text):
        return certain
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


def _last_certain_end(text: str) -> int:
    """Finds the last sentence end that holds wherever its sentence began; 0 if there is none."""
    last = 0
    for match in _CERTAIN_END.finditer(text, max(0, len(text) - _REACH), len(text) - _LOOKAHEAD):
        word_end = match.start()
        if match[0][0] != "." or text[word_end - 4 : word_end] not in _ABBREVIATION_TAILS:
            last = match.end()
    return last


def _split_spaced(lines: Iterable[str], pattern: re.Pattern[str], sentences: list[str]) -> None:
    """Adds the sentences of lines where spaces separate them; the lines are clean."""
    for line in lines:
        start = 0
        for match in pattern.finditer(line):
            terminator, end = match.span()
            is_plain = (
                match.lastindex and line[terminator - 4 : terminator] not in _ABBREVIATION_TAILS
            )
            if not (is_plain or _latin_end_holds(line, start, terminator, end)):
                continue
            sentences.append(line[start : end - 1])
            start = end
        if start < len(line):
            sentences.append(line[start:])


def _split_mixed(line: str, sentences: list[str]) -> None:
    """Adds the sentences of a clean line that holds text of scripts without spaces."""
    start = 0
    for match in _ANY_PLACE.finditer(line):
        end = match.end()
        if end == len(line):
            break
        if line[match.start()] in _FULL_STOPS or (match[1] and _holds_full_stop(match)):
            if line[end] in _CONTINUERS:
                continue
            if '"' in match[1]:
                end = _before_opening_quote(line, start, match)
        elif line[end - 1] == " ":
            if not _latin_end_holds(line, start, _last_marks(line, match), end):
                continue
        elif not _ends_before_next_character(line, match):
            continue
        if start < end:
            sentences.append(line[start:end].rstrip())
            start = end
    if start < len(line):
        sentences.append(line[start:])


def _holds_full_stop(match: re.Match[str]) -> bool:
    return "……" in match[0] or not _FULL_STOPS.isdisjoint(match[1])


def _last_marks(line: str, match: re.Match[str]) -> int:
    """Finds where the marks begin that end the match, closers left out: `etc.);` at `;`."""
    first, position = match.span()
    if not match[1]:
        return first
    while line[position - 1] not in _LATIN_MARKS:
        position -= 1
    while position > first and line[position - 1] in _LATIN_MARKS:
        position -= 1
    return position


def _ends_before_next_character(line: str, match: re.Match[str]) -> bool:
    """Tells whether Latin marks with no space after them end a sentence of unspaced characters."""
    first, end = match.span()
    if line[first] == "…":
        return False
    previous = line[first - 1] if first else " "
    after_unspaced = _is_unspaced(previous)
    if _MARKS_BESIDES_STOPS.isdisjoint(match[0]):
        # In `"."` the stop is what the quotes are about.
        after_closer = previous in _CLOSERS and not match[0].strip(".．")
        return (after_unspaced or after_closer) and _is_unspaced(line[end])
    return _is_unspaced(line[end]) or (after_unspaced and line[end].isalnum())


def _latin_end_holds(text: str, start: int, terminator: int, following: int) -> bool:
    """Tells whether a terminator before white space ends the sentence begun at `start`."""
    mark = text[terminator]
    if mark == ";":
        return True
    next_character = text[following]
    if next_character.islower():
        return False
    word = text[text.rfind(" ", start, terminator) + 1 or start : terminator]
    if word and not word.isascii():
        if _is_unspaced(word[-1]):
            return True
        word = _latin_tail(word)
    if _stands_alone(word, mark):
        return _next_word(text, following) in _STARTERS
    if mark != "." or text[terminator + 1] in ".!?":
        return True
    word = word.lstrip(_OPENERS)
    if text[terminator + 1] != " ":
        # A bracket or quote closed after the full stop: no abbreviation ends there by itself.
        return word.lower() not in _NEVER_END
    if len(word) == 1 and word.isalpha():
        return word == "I"
    lowered = word.lower()
    if lowered in _NEVER_END:
        return False
    if word == "#" or (word.isdigit() and terminator - len(word) == start):
        return False
    if lowered in _MAY_END or ("." in word and _DOTTED.fullmatch(word)):
        return _next_word(text, following) in _STARTERS
    return True


def _stands_alone(word: str, mark: str) -> bool:
    """Tells whether a mark is quoted or stands for left-out items: `all(!)`, `0 ... 9`, `'.'`."""
    if not word:
        return mark in ".…．"
    return word[-1] in "([{“‘«「『（【《〈" or not word.strip("\"'")


def _is_unspaced(character: str) -> bool:
    return _UNSPACED_CHARACTER.match(character) is not None


def _latin_tail(word: str) -> str:
    """Returns what stands behind the last unspaced character."""
    start = len(word)
    while start and not _is_unspaced(word[start - 1]):
        start -= 1
    return word[start:]


def _next_word(text: str, start: int) -> str:
    end = text.find(" ", start)
    return text[start : end if end >= 0 else len(text)].strip(_OPENERS + ",.;:!?")


def _before_opening_quote(text: str, start: int, match: re.Match[str]) -> int:
    """Finds where a Chinese terminator's sentence ends: a straight quote may open the next one."""
    end = match.end()
    quote = text.find('"', match.start(), end)
    if text.count('"', start, quote) % 2 == 0 and not text[quote + 1 : end].strip():
        return quote
    return end

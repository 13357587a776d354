"""Recognises hard-wrapped text, as mails, books and manuals are, and joins its lines again.

Whoever wraps text puts a word on the next line only if it does not fit any more. So a line that
could have taken the first word of the next one ends a paragraph, an item of a list or a verse;
all other lines go on. Everything is decided by a few lines that stand together, so that text read
in pieces gives what it gives as a whole.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import NamedTuple

_NARROWEST, _WIDEST = 38, 130
_WIDTH_QUANTILES = (0.95, 0.8)
_SLACK = 12
# Nobody wraps lines that stick out so far; what does is a paragraph on one line.
_OVERLONG = 1.2
_MOST_OVERLONG = 0.25
_STRETCH = 250
_FEWEST_PAIRS, _MANY_PAIRS = 4, 12
_FULL_SHARE, _FULL_SHARE_OF_MANY = 0.75, 0.55
_BROKEN_SHARE, _LOWER_SHARE, _CASELESS_SHARE = 0.5, 0.2, 0.5
# Of the shares of full lines, of broken ones, and half of that of prose. Programs with long
# comments have little of each, technical prose has little of the last alone.
_WRAPPED_SCORE = 1.95
# Sentences that end inside lines, for each line; how many such make a chance of none at line ends.
_MARKS_INSIDE, _MANY_ENDS = 0.03, 5
_LETTER_SHARE, _PROSE_SHARE = 0.5, 0.85

_WIDE = re.compile(
    "[\u1100-\u115f\u2e80-\ua4cf\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe6f\uff00-\uff60\uffe0-\uffe6]"
)
# Scripts without spaces, with their punctuation, but without the quotes that they share.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3000-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff00-\uff60]"
)
_NO_LETTER = re.compile(r"[\W\d_]")
_NO_PROSE = re.compile(r"[^\w\s,.'’\-，。、]|[\d_]")
_QUOTE = re.compile(r"(?: ?>)+ ?")
_PAGE_START = "\f"
_BULLET = re.compile(
    r"(?:[-*+•◦‣▪·–—○●◆■□]|#+|//+|;+|%+|\.\.|#\.|@\w+|:[\w ]+:|\\item|\[\d+\]"
    r"|\(?(?:\d{1,3}|[a-zA-Z]|[ivx]{1,4})[.)、])\s+(?=\S)"
)
_NUMBER = re.compile(r"\(?\w+[.)]\s")
_SENTENCE_END = re.compile(r"[.!?…。！？：；:;][\"'”’»)\]」』）】*_]*$")
# What ends a sentence for certain; a headline in Chinese may have any mark but the full stop.
_MARK_INSIDE = re.compile(
    r"[^\W_][)\]\"'”’»*`]*[.!?…][\"'”’»)\]*_`]*\s+(?=\S)|。[\"”’」』）】]*(?=\S)"
)
_MARK_AT_END = re.compile(r"[.!?…。！？][\"'”’»)\]」』）】*_`]*$")
_COLUMNS = re.compile(r"\S {3,}\S|\s\|\s|^\||[\u2500-\u257f]")
_GAP = re.compile(r"\S {2,}(?=\S)")
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
_COMPOUND = re.compile(r"(?<![\w\-‐])[^\W\d_]+(?:[-‐][^\W\d_]+)+(?![\w\-‐])")
_HYPHENS = ("-", "‐", "\u00ad")
_BROKEN_WORD = re.compile(r"((?:[^\W\d_]+['’\-‐])*[^\W\d_]+)([-‐\u00ad])$")
_LONGEST_WORD = 256
_SOFT_HYPHEN = "\u00ad"
# What follows a hyphen that stands for a word left out: "Vor- und Nachteile".
_CONJUNCTIONS = frozenset(["and", "or", "to", "und", "oder", "bzw", "sowie", "bis", "et", "ou"])
_SHORTEST_PART = 4


class _Line(NamedTuple):
    """A line of a paragraph.

    Attributes:
        quote: the marks of a quoted mail that it begins with.
        text: what follows them and the indentation.
        indent: of the text, in columns.
        columns: where the text ends.
        marker: length of the bullet or number that the text begins with, and the space after it.
    """

    quote: str
    text: str
    indent: int
    columns: int
    marker: int


@dataclass(frozen=True)
class Wrapping:
    """Describes how the lines of a text were broken, and joins them again.

    Attributes:
        width: columns of its full lines; a Chinese character takes two.
        hyphenates: whether words were parted at the ends of lines.
        words: lower-case words that the beginning of the text has inside its lines.
        compounds: those with a hyphen.
    """

    width: int
    hyphenates: bool = False
    words: frozenset[str] = frozenset()
    compounds: frozenset[str] = frozenset()

    def paragraphs(self, lines: Iterable[str]) -> list[str]:
        """Joins lines to paragraphs, items of lists, verses and other pieces, each on one line."""
        pieces: list[str] = []
        for run in _runs(lines):
            pieces.extend(self._join(run))
        return pieces

    def full_share(self, pairs: Sequence[tuple[_Line, _Line]]) -> float:
        """Returns the share of half-wide lines that lack room for the next line's first word."""
        return len(self._full(pairs)) / max(1, len(self._long(pairs)))

    def shows(self, pairs: Sequence[tuple[_Line, _Line]]) -> bool:
        """Tells whether lines that follow each other look as if they had been wrapped so."""
        total = sum(line.columns for line, _ in pairs)
        overlong = sum(line.columns for line, _ in pairs if self._is_overlong(line))
        full, num_long = self._full(pairs), len(self._long(pairs))
        share = _FULL_SHARE if num_long < _MANY_PAIRS else _FULL_SHARE_OF_MANY
        if (
            not _NARROWEST <= self.width <= _WIDEST
            or overlong > _MOST_OVERLONG * total
            or len(full) < max(_FEWEST_PAIRS, share * num_long)
        ):
            return False
        return _is_broken_anywhere(full) and _is_prose_in_lines(full, len(full) / num_long)

    def _long(self, pairs: Sequence[tuple[_Line, _Line]]) -> list[tuple[_Line, _Line]]:
        return [pair for pair in pairs if 2 * pair[0].columns >= self.width]

    def _full(self, pairs: Sequence[tuple[_Line, _Line]]) -> list[tuple[_Line, _Line]]:
        return [pair for pair in self._long(pairs) if self._is_full(*pair)]

    def _is_overlong(self, line: _Line) -> bool:
        return line.columns > _OVERLONG * self.width

    def _join(self, raw: list[str]) -> Iterator[str]:
        if len(raw) == 1 or _is_table(raw):
            yield from raw
            return
        lines = [_parsed(line) for line in raw]
        is_filled = _is_filled(lines)
        piece, column = [raw[0].rstrip()], lines[0].indent
        for number, (line, following) in enumerate(pairwise(lines), 1):
            if self._goes_on(line, following, column, len(piece) == 1, is_filled):
                if line.quote and len(piece) == 1:
                    piece[0] = line.text
                self._glue(piece, following.text)
                column = following.indent
            else:
                yield "".join(piece)
                piece, column = [raw[number].rstrip()], following.indent
        yield "".join(piece)

    def _goes_on(
        self, line: _Line, following: _Line, column: int, is_first: bool, is_filled: bool
    ) -> bool:
        """Tells whether a line belongs to the same paragraph as the one before."""
        if line.quote != following.quote or not (_has_letters(line) and _has_letters(following)):
            return False
        if self._is_overlong(line):
            return False
        is_full = self._is_full(line, following)
        ends = _SENTENCE_END.search(line.text) is not None
        if following.marker and (not is_full or ends or not _NUMBER.match(following.text)):
            return False
        if following.indent > column:
            if is_first and following.indent in _hanging_columns(line):
                return True
            return is_full and not ends
        if following.indent < column:
            return is_first and not line.marker and is_full
        if is_full or is_filled:
            return True
        is_long = 2 * (line.columns - line.indent) >= self.width - line.indent
        is_prose = _is_prose(line.text) and _is_prose(following.text)
        return is_long and is_prose and not ends and following.text[0].islower()

    def _is_full(self, line: _Line, following: _Line) -> bool:
        room = self.width - self.width // _SLACK - line.columns
        return _first_word(following.text) > room and not self._is_overlong(line)

    def _glue(self, piece: list[str], text: str) -> None:
        """Adds the text of the next line to the parts of a piece."""
        end = "".join(piece[-2:])[-_LONGEST_WORD:]
        if _UNSPACED.match(end[-1]) or _UNSPACED.match(text[0]):
            piece.append(text)
            return
        is_hyphenated = end[-1] in "-‐" and end[-2:-1].isalnum() and text[0].isalnum()
        is_spaced = not is_hyphenated
        if (broken := _broken_word(end)) is not None:
            left, hyphen = broken.groups()
            match = _WORD.match(text)
            if match is None:
                is_spaced = not text[0].isalnum()
            elif hyphen == _SOFT_HYPHEN or self._is_parted(left, match[0]):
                piece[-1], is_spaced = piece[-1][:-1], False
            else:
                is_spaced = match[0] in _CONJUNCTIONS
        piece.append(f" {text}" if is_spaced else text)

    def _is_parted(self, left: str, right: str) -> bool:
        """Tells whether a hyphen between two lines parts a word, and is none of a compound."""
        if not right[0].islower() or right in _CONJUNCTIONS or not left.isalpha():
            return False
        left = left.lower()
        if f"{left}-{right}" in self.compounds:
            return False
        if left + right in self.words:
            return True
        are_words = left in self.words and right in self.words and len(left) >= _SHORTEST_PART
        return self.hyphenates and not are_words


def recognise_wrapping(text: str, *, is_certain: bool = False) -> Wrapping | None:
    """Recognises how a text is wrapped, by its beginning; None if it is not.

    Wrapped lines are about equally long and hardly any could take the next one's first word; most
    of them end inside a sentence, sentences end inside them, and many begin with a small letter.
    Verses, titles and utterances do not have all of this, nor do programs.

    Args:
        text: the beginning of a text, in whole lines.
        is_certain: whether it is known to be wrapped.
    """
    raw = text.split("\n")
    if not is_certain and _has_long_lines(raw):
        return None
    pairs = [
        (line, following)
        for stretch in _stretches(raw)
        for line, following in pairwise(map(_parsed, stretch))
        if line.text and following.text and _letters(line.text) >= _LETTER_SHARE
    ]
    if not pairs:
        return Wrapping(_NARROWEST) if is_certain else None
    columns = sorted(line.columns for line, _ in pairs)
    widths = [columns[int(quantile * (len(columns) - 1))] for quantile in _WIDTH_QUANTILES]
    best = max(map(Wrapping, widths), key=lambda wrapping: wrapping.full_share(pairs))
    if not is_certain and not best.shows(pairs):
        return None
    return Wrapping(best.width, *_hyphens([_parsed(line) for line in raw]))


def _is_broken_anywhere(full: Collection[tuple[_Line, _Line]]) -> bool:
    """Tells whether full lines break a text wherever it stands, so that sentences end inside them.

    Titles, verses and whatever was said in one breath have their sentences end with their lines,
    or no marks at all.
    """
    full = set(full)
    inside = sum(len(_MARK_INSIDE.findall(line.text)) for line in set(chain.from_iterable(full)))
    at_end = sum(_MARK_AT_END.search(line.text) is not None for line, _ in full)
    words = sum(line.text.count(" ") + len(_WIDE.findall(line.text)) for line, _ in full)
    expected = inside * len(full) / max(1, words)
    return inside >= max(1, at_end - 1, _MARKS_INSIDE * len(full)) and (
        at_end > 0 or expected < _MANY_ENDS
    )


def _is_prose_in_lines(full: Sequence[tuple[_Line, _Line]], full_share: float) -> bool:
    """Tells whether full lines are those of prose, by what they are made of, begin and end with.

    Args:
        full: lines with those that follow them.
        full_share: how many of the long lines they are.
    """
    prose = sum(_is_prose(line.text) for line, _ in full) / len(full)
    broken = sum(_SENTENCE_END.search(line.text) is None for line, _ in full) / len(full)
    initials = [following.text[0] for _, following in full]
    lower = sum(map(str.islower, initials))
    caseless = sum(i.isalpha() and not i.islower() and not i.isupper() for i in initials)
    if caseless >= _CASELESS_SHARE * len(full):
        return min(prose, broken) >= _BROKEN_SHARE
    return lower >= _LOWER_SHARE * len(full) and full_share + broken + prose / 2 >= _WRAPPED_SCORE


def _broken_word(text: str) -> re.Match[str] | None:
    """Finds the word that a hyphen at the end of a text breaks off, and the hyphen."""
    if not text.endswith(_HYPHENS):
        return None
    return _BROKEN_WORD.search(text[-_LONGEST_WORD:])


def _has_long_lines(lines: list[str]) -> bool:
    """Tells whether most of a text stands in lines that nobody wraps so, which is soon seen."""
    sizes = [len(line) for line in lines]
    return 2 * sum(size for size in sizes if size > _WIDEST) > sum(sizes)


def _stretches(lines: list[str]) -> Iterator[list[str]]:
    """Parts of a text that are enough to see how it is written: beginning, middle, end."""
    if len(lines) <= 3 * _STRETCH:
        yield lines
        return
    for start in (0, (len(lines) - _STRETCH) // 2, len(lines) - _STRETCH):
        yield lines[start : start + _STRETCH]


def _columns_of(text: str) -> int:
    """Counts the columns that a text takes on a screen."""
    return len(text) if text.isascii() else len(text) + len(_WIDE.findall(text))


def _runs(lines: Iterable[str]) -> Iterator[list[str]]:
    """Yields lines that stand together, without the empty ones between.

    What a page begins with stands with the end of the page before if it goes on in a sentence.
    """
    run: list[str] = []
    is_apart = False
    for line in lines:
        if not line or line.isspace():
            is_apart = True
            continue
        if run and is_apart and not _goes_over_page(run[-1], line):
            yield run
            run = []
        run.append(line)
        is_apart = False
    if run:
        yield run


def _goes_over_page(line: str, following: str) -> bool:
    return (
        following.startswith(_PAGE_START)
        and following.lstrip()[0].islower()
        and _SENTENCE_END.search(line.rstrip()) is None
    )


def _parsed(line: str) -> _Line:
    line = line.lstrip(_PAGE_START).expandtabs().rstrip()
    quote, unquoted = "", line
    if ">" in line[:2] and (match := _QUOTE.match(line)):
        quote, unquoted = match[0].replace(" ", ""), line[match.end() :]
    text = unquoted.lstrip()
    bullet = _BULLET.match(text)
    marker = bullet.end() if bullet else 0
    indent = len(quote) + _columns_of(unquoted[: len(unquoted) - len(text)])
    return _Line(quote, text, indent, _columns_of(line), marker)


def _letters(text: str) -> float:
    """Returns the share of letters in what is no space."""
    solid = text.replace(" ", "")
    return len(_NO_LETTER.sub("", solid)) / max(1, len(solid))


def _has_letters(line: _Line) -> bool:
    return any(map(str.isalpha, line.text))


def _is_prose(text: str) -> bool:
    return len(_NO_PROSE.findall(text)) <= (1 - _PROSE_SHARE) * len(text)


def _is_table(lines: list[str]) -> bool:
    """Tells whether most lines have columns or rules."""
    return 2 * sum(_COLUMNS.search(line.strip()) is not None for line in lines) > len(lines)


def _is_filled(lines: list[_Line]) -> bool:
    """Tells whether no line of a run, or hardly one, could take the next one's first word."""
    if len(lines) < 4:
        return False
    widest = max(line.columns for line in lines)
    full = sum(
        line.columns + _first_word(following.text) > widest for line, following in pairwise(lines)
    )
    return full >= _FULL_SHARE * (len(lines) - 1)


def _first_word(text: str) -> int:
    """Returns the columns that the first word of a line would take at the end of the one before."""
    if not text:
        return 0
    if _UNSPACED.match(text):
        return 2
    end = text.find(" ")
    return 1 + _columns_of(text[: end if end >= 0 else len(text)])


def _hanging_columns(line: _Line) -> Iterator[int]:
    """Yields where the lines of an item go on: under its text, after a marker or a wide gap."""
    if line.marker:
        yield line.indent + _columns_of(line.text[: line.marker])
    for gap in _GAP.finditer(line.text):
        yield line.indent + _columns_of(line.text[: gap.end()])


def _hyphens(lines: Sequence[_Line]) -> tuple[bool, frozenset[str], frozenset[str]]:
    """Tells whether words are parted at the ends of lines, and which words and compounds occur."""
    counts: Counter[str] = Counter()
    compounds: set[str] = set()
    broken = []
    for line, following in zip(lines, [*lines[1:], _parsed("")], strict=True):
        text = line.text
        if (match := _broken_word(text)) is not None:
            right = _WORD.match(following.text)
            if right is not None and match[1].isalpha() and right[0][0].islower():
                broken.append((match[1].lower(), right[0]))
            text = text[: -len(match[0])]
        counts.update(word.lower() for word in _WORD.findall(text))
        compounds.update(word.lower().replace("‐", "-") for word in _COMPOUND.findall(text))
    words = frozenset(counts)
    parted = sum(left + right in words for left, right in broken)
    joined = sum(
        f"{left}-{right}" in compounds or (left in words and right in words)
        for left, right in broken
    )
    return parted > joined, words, frozenset(compounds)

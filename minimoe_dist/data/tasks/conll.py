"""Reads tags of words from files in columns: a word a line, an empty line between sentences.

The first column is the word, the last one its tag, unless `WordColumns` says otherwise; a file's
columns are separated by tabs or by blanks. CoNLL-2003 has four of them and ``-DOCSTART-`` lines;
Chinese files in BIO, BMES, BMEO or BIOES have two, of which the first is a character; GermEval's
have a number first, nested tags last, and a comment before each sentence. WikiANN's words have
their language before them (``en:Paris``), which is taken off where every word of a file has the
same.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import dropwhile, groupby
from pathlib import Path

from ...errors import UserError
from .rows import BadRows, Lines, check_line_ends, columns_in_words, damage_of
from .tags import strangers
from .task import Reader, Row, Task, TaskData, collect, data_folder

NAMES = ("ner", "conll2003")
_METRICS = ("chunk_f1", "chunk_precision", "chunk_recall", "accuracy")
_DOCUMENT_START = "-DOCSTART-"
# CoNLL-2003's own file names say "testa" for the dev part.
_NAMES_OF_SPLITS = {
    "train": ("train",),
    "dev": ("dev", "valid", "validation", "testa"),
    "test": ("test", "testb"),
}
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[a-z]+)*:")
_NO_DATA = (".md", ".py", ".json", ".gz", ".zip", ".tgz")
_TAG = re.compile(r"O|[BIEMSLU]-\S+")
_NUMBER_OF_WORD = re.compile(r"\d{1,9}")
# CoNLL-U's numbers of several words at once, and of words that the text leaves out.
_NUMBER_BESIDES = re.compile(r"\d+[-.]\d+")
_NUMBER = re.compile(r"[-+]?\d+(\.\d+)?")
# Comments of CoNLL-U.
_KEY_AND_VALUE = re.compile(r"#\s*[^\s=]+\s*=(\s|$)")
_NAMES_OF_TAGS = ("tag", "tags", "ner", "ner_tag", "ner_tags", "label", "labels", "entity", "bio")
_MOST = 0.9
_MANY_TAGS = 50

_Line = tuple[int, list[str]]  # (its number, its columns)


@dataclass(frozen=True)
class WordColumns:
    """Names the columns of a file that are read, counted from 1.

    Attributes:
        word: of the words.
        tag: of their tags; None is the last one.
    """

    word: int = 1
    tag: int | None = None

    @property
    def last(self) -> int:
        """The rightmost column that has to be there."""
        return max(self.word, self.tag or 2)


FIRST_AND_LAST = WordColumns()


def task_of(name: str) -> Task:
    """Returns a task of one of `NAMES`; its tags are in its files."""
    return Task(name, "tagging", _METRICS)


def find(name: str, data_dir: str | Path, split: str) -> Path:
    """Finds the file of a split, such as ``train.txt``, ``eng.testa`` or ``dev.char.bmes``.

    It is looked for in a folder, then in one of the task's name in that.

    Raises:
        UserError: there is none, or more than one.
    """
    root = data_folder(data_dir)
    for folder in (root, *_folders_of(name, root)):
        files = _files_of(split, folder)
        if len(files) == 1:
            return files[0]
        if files:
            names = ", ".join(path.name for path in files)
            raise UserError(
                f"data_dir: {folder}: {names} all look like its {split} file; leave one"
            )
    raise UserError(
        f"data_dir: {data_dir}: no {split} file of {name} in it, nor in a folder {name}; give a "
        "folder with train.txt and dev.txt in columns"
    )


def _folders_of(name: str, root: Path) -> list[Path]:
    """Returns the folders in ``root`` that are called as a task is: ``ner``, ``CoNLL-2003``."""
    return [
        path
        for path in sorted(root.iterdir())
        if path.is_dir() and re.sub(r"[-_ ]", "", path.name.lower()) == name
    ]


def _files_of(split: str, folder: Path) -> list[Path]:
    names = _NAMES_OF_SPLITS[split]
    return [
        path
        for path in sorted(folder.iterdir())
        if path.is_file()
        and path.suffix not in _NO_DATA
        and any(part in names for part in re.split(r"[._-]", path.name.lower()))
    ]


def open_conll(
    name: str,
    data_dir: str | Path,
    split: str,
    *,
    labels: tuple[str, ...] = (),
    strict: bool = False,
    columns: WordColumns = FIRST_AND_LAST,
) -> TaskData:
    """Reads one split.

    Args:
        name: one of `NAMES`.
        data_dir: the folder of the files.
        split: "train", "dev" or "test".
        labels: tags in the order of their numbers; by default the training file's.
        strict: raise at the first sentence that cannot be used.
        columns: of the words and of the tags.

    Raises:
        UserError: a file is missing, or not in columns, or these are no words and tags; in strict
            mode, a bad row.
    """
    is_scored = bool(labels) or split != "train"
    if not labels and split != "train":
        labels = open_conll(name, data_dir, "train", columns=columns).task.labels
    task = Task(name, "tagging", _METRICS, labels)
    path = find(name, data_dir, split)
    return collect(task, path, _reader(columns), strict=strict, is_scored=is_scored)


def _reader(columns: WordColumns) -> Reader:
    def read(path: Path, bad: BadRows) -> Iterator[Row]:
        rows = list(_sentences(path, bad, columns))
        _check_words(path, rows, columns)
        length = len(_language_of(rows))
        for line, words, tags in rows:
            yield line, tuple(word[length:] for word in words), tags

    return read


def _check_words(path: Path, rows: Sequence[Row], columns: WordColumns) -> None:
    """Refuses a column of words that numbers them or has the tags, and one of tags that has none.

    Raises:
        UserError: it does.
    """
    remedy = "give --word_column and --tag_column, counted from 1"
    long_enough = [words for _, words, _ in rows if len(words) > 1]
    numbered = sum(map(_are_consecutive, long_enough))
    if long_enough and numbered > _MOST * len(long_enough):
        raise UserError(
            f"{path}: its column {columns.word} numbers the words ({', '.join(rows[0][1][:3])}) "
            f"and has none; {remedy}, as --word_column {columns.word + 1} --tag_column "
            f"{columns.word + 2}"
        )
    words = {word for _, words, _ in rows for word in words}
    tags = {tag for _, _, tags in rows for tag in tags}
    place = f"column {columns.tag}" if columns.tag else "last column"
    if tags and all(map(_NUMBER.fullmatch, tags)) and any("." in tag for tag in tags):
        raise UserError(
            f"{path}: its {place} has numbers such as {max(tags)}, and no tags; {remedy}"
        )
    if len(tags) > _MANY_TAGS and 2 * len(tags) > len(words):
        raise UserError(
            f"{path}: its {place} has {len(tags):,} different values for {len(words):,} words, so "
            f"it is no column of tags; {remedy}"
        )
    if len(words) > 1 and all(map(_TAG.fullmatch, words)) and not all(map(_TAG.fullmatch, tags)):
        raise UserError(
            f"{path}: its column {columns.word} has tags such as {max(words)}, and no words; "
            f"{remedy}, as --word_column 2 --tag_column 1"
        )


def _are_consecutive(words: Sequence[str]) -> bool:
    numbers = [word for word in words if not _NUMBER_BESIDES.fullmatch(word)]
    if not numbers or not all(map(_NUMBER_OF_WORD.fullmatch, numbers)):
        return False
    first = int(numbers[0])
    return [int(number) for number in numbers] == list(range(first, first + len(numbers)))


def _language_of(rows: list[Row]) -> str:
    """Returns the language and colon that all words begin with, else nothing."""
    match = _LANGUAGE.match(rows[0][1][0]) if rows else None
    prefix = match[0] if match else ""
    return prefix if all(word.startswith(prefix) for _, words, _ in rows for word in words) else ""


def _sentences(path: Path, bad: BadRows, columns: WordColumns) -> Iterator[Row]:
    """Yields the sentences of a file, leaving out any with a line that is no word and its tag."""
    blocks = list(_blocks(path, bad))
    layout = _layout_of(blocks, columns)
    for block in blocks:
        sentence = list(dropwhile(layout.is_besides, block))
        problem = layout.problem_of(sentence)
        if problem is not None:
            bad.add(path, *problem)
        elif sentence:
            words = tuple(values[columns.word - 1] for _, values in sentence)
            yield sentence[0][0], words, [layout.tag_of(values) for _, values in sentence]


@dataclass(frozen=True)
class _Layout:
    """What nearly all lines of a file have in common.

    Attributes:
        columns: those that are read.
        width: the number of columns.
        is_wide_enough: whether these are all that are read.
        strangers: what is no tag, as it does not mark chunks as nearly all tags do.
        header: the number of the line that names the columns; 0 where none does.
    """

    columns: WordColumns
    width: int
    is_wide_enough: bool
    strangers: frozenset[str] = frozenset()
    header: int = 0

    def has_columns(self, values: Sequence[str]) -> bool:
        """Returns whether a line has a word and a tag."""
        return len(values) == self.width and self.is_wide_enough

    def tag_of(self, values: Sequence[str]) -> str:
        """Returns a line's tag."""
        return values[(self.columns.tag or 0) - 1].strip()

    def is_besides(self, row: _Line) -> bool:
        """Returns whether a line that begins a sentence is a comment, or names the columns."""
        line, values = row
        if not values[0].startswith("#"):
            return line == self.header
        if not self.has_columns(values) or _KEY_AND_VALUE.match(" ".join(values)):
            return True
        return self.tag_of(values) in self.strangers

    def problem_of(self, sentence: Sequence[_Line]) -> tuple[int, str] | None:
        """Finds the first line of a sentence that cannot be used: (line, what is wrong)."""
        for line, values in sentence:
            problem = damage_of(values)
            if problem is not None:
                return line, problem
            if not self.has_columns(values):
                most = max(self.width, self.columns.last)
                expected = "not a word and its tag" if self.width < 2 else f"not {most}"
                return line, f"has {columns_in_words(len(values))}, {expected}"
            tag = self.tag_of(values)
            if not tag:
                return line, "has no tag"
            if tag in self.strangers:
                return line, f"has {tag!r} where nearly all lines mark chunks"
        return None


def _layout_of(blocks: Sequence[list[_Line]], columns: WordColumns) -> _Layout:
    widths = Counter(len(values) for block in blocks for _, values in block)
    width = widths.most_common(1)[0][0] if widths else 0
    layout = _Layout(columns, width, width >= columns.last)
    counts: Counter[str] = Counter()
    behind_signs: set[str] = set()  # of words, or of comments
    header = 0
    for block in blocks:
        for line, values in block:
            if not layout.has_columns(values):
                continue
            tag = layout.tag_of(values)
            if values[0].startswith("#"):
                behind_signs.add(tag)
                continue
            if not counts and tag.casefold() in _NAMES_OF_TAGS:
                header = line
            counts[tag] += 1
    name = next(iter(counts), "")
    if header and counts[name] == 1:
        del counts[name]
    else:
        header = 0
    return replace(layout, strangers=strangers(counts.keys() | behind_signs, counts), header=header)


def _blocks(path: Path, bad: BadRows) -> Iterator[list[_Line]]:
    """Yields the sentences of a file as (line, its columns).

    Raises:
        UserError: its lines end as on old Macs.
    """
    lines = list(Lines(path, bad))
    if lines:
        check_line_ends(path, lines[0])
    separator = _separator_of(lines)
    rows = ((number, _columns_of(line, separator)) for number, line in enumerate(lines, start=1))
    for is_text, block in groupby(rows, key=lambda row: not _parts_sentences(row[1])):
        if is_text:
            yield list(block)


def _parts_sentences(values: Sequence[str]) -> bool:
    # In a file with tabs, the line may have blanks.
    return not values or (
        values[0].startswith(_DOCUMENT_START) and values[0].split(" ")[0] == _DOCUMENT_START
    )


def _separator_of(lines: Sequence[str]) -> str:
    """Returns the tab or the blank, whichever most lines have between their columns."""
    rows = [line for line in lines if line.strip() and not line.startswith(("#", _DOCUMENT_START))]
    return "\t" if 2 * sum("\t" in line for line in rows) > len(rows) else " "


def _columns_of(line: str, separator: str) -> list[str]:
    """Splits by tabs, or by any number of blanks: a Chinese word may be a wide blank."""
    if not line.strip():
        return []
    values = line.split(separator)
    return values if separator == "\t" else [value for value in values if value]

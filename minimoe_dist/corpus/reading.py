"""Reads input files to sentences, for formatting and building alike."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal

from ..errors import UserError
from ..runtime import logger
from .blocks import REPLACEMENT, Block, Document, Problems
from .losses import KEPT
from .progress import BytesProgress
from .sentences import SentenceRules, split_lines, split_sentences
from .sources import Source, SourceOptions, TFRecordSource, choose_source
from .streams import InputStream, check_encoding

_log = logger("corpus")
_SHOWN_PROBLEMS = 20
_TRIAL_SENTENCES = 200
_USUAL_MINIMA = (SentenceRules.minimum_words, SentenceRules.minimum_characters)


@dataclass(frozen=True)
class ReadingOptions:
    """Says how inputs become sentences.

    Attributes:
        input_format: one of `sources.INPUT_FORMATS`; "auto" looks at each file.
        rules: which sentences stay.
        title: whether documents' titles are dropped, or kept as their first sentences.
        text_key, title_key: where JSON records and Parquet rows hold text and title; None for
            the usual keys.
        encoding: of text; None to find it out for each file.
        wrapped: whether the lines of paragraphs are joined: where they look wrapped, always, never.
        force: whether files that do not look like text are read, and a corpus that lost more
            than half of its text is kept.
        strict: whether the first damaged line fails the run instead of being counted.
        num_processors: processes that read.
        show_progress: whether a progress bar is drawn.
        input_dir: folder that outputs and the manifest name the inputs from; None for the
            deepest folder that holds them all.
    """

    input_format: str = "auto"
    rules: SentenceRules = field(default_factory=SentenceRules)
    title: Literal["drop", "keep"] = "drop"
    text_key: str | None = None
    title_key: str | None = None
    encoding: str | None = None
    wrapped: Literal["auto", "join", "keep"] = "auto"
    force: bool = False
    strict: bool = False
    num_processors: int = 1
    show_progress: bool = True
    input_dir: str | None = None

    def __post_init__(self) -> None:
        if self.num_processors < 1:
            raise UserError(f"--num_processors {self.num_processors}: give 1 or more")
        if self.title not in ("drop", "keep"):
            raise UserError(f"--title {self.title}: give drop or keep")
        if self.encoding is not None:
            check_encoding(self.encoding)

    def source_options(self) -> SourceOptions:
        """Returns those of the options that readers of single files need."""
        return SourceOptions(
            self.rules.longest,
            self.text_key,
            self.title_key,
            self.encoding,
            self.force,
            self.wrapped,
        )


@dataclass(frozen=True)
class BlockOfSource:
    """A block with the reader that understands it."""

    source: Source
    block: Block


@dataclass
class BlockSentences:
    """The sentences of one block's documents; documents may have none."""

    block: Block
    continues: bool = False
    documents: list[list[str]] = field(default_factory=list)
    problems: Problems = field(default_factory=Problems)


def _sentences_of(
    document: Document, source: Source, block: Block, rules: SentenceRules, problems: Problems
) -> list[str]:
    if not source.lines_are_sentences:
        split = split_lines(document.lines, rules.longest)
        long_enough = list(filter(rules.is_long_enough, split))
        if len(long_enough) < len(split):
            problems.counts["short_sentences"] += len(split) - len(long_enough)
            problems.lost["short_sentences"] += sum(map(len, split)) - sum(map(len, long_enough))
        return long_enough
    keeps_short = (rules.minimum_words, rules.minimum_characters) == _USUAL_MINIMA
    sentences: list[str] = []
    for index, line in enumerate(document.lines):
        line = " ".join(line.split())
        # What is too long for a sentence is taken for raw text, its rest in a next block too.
        is_rest = index == 0 and document.continues and block.continues_line
        if is_rest or len(line) > rules.longest:
            sentences.extend(split_sentences(line, rules.longest))
        elif line and (keeps_short or rules.is_long_enough(line)):
            sentences.append(line)
        elif line:
            problems.counts["short_sentences"] += 1
            problems.lost["short_sentences"] += len(line)
    return sentences


def _count_replaced(document: Document, sentences: list[str], problems: Problems) -> None:
    """Counts what U+FFFD stands for as lost by that, and neither as kept nor as lost with more."""
    in_kept = sum(sentence.count(REPLACEMENT) for sentence in sentences)
    replaced = sum(line.count(REPLACEMENT) for line in document.lines)
    problems.kept -= in_kept
    if replaced > in_kept:
        problems.lost["short_sentences"] -= replaced - in_kept
    problems.lost[problems.replaced_as or "replacement_characters"] += replaced


@dataclass(frozen=True)
class SentenceReader:
    """Reads a block to sentences; runs in worker processes."""

    rules: SentenceRules
    strict: bool
    keeps_titles: bool = False

    def __call__(self, work: BlockOfSource) -> BlockSentences:
        """Reads one block; its problems come with the result, or (strict) raise UserError."""
        problems = Problems(strict=self.strict)
        parsed = BlockSentences(work.block.without_data(), problems=problems)
        for source, block in work.block.members or [(work.source, work.block)]:
            if not problems.note_damage(block):
                self._read(source, block, parsed)
        return parsed

    def _read(self, source: Source, block: Block, parsed: BlockSentences) -> None:
        parsed.problems.replaced_as = None
        for document in source.documents(block, parsed.problems):
            if not parsed.documents:
                parsed.continues = document.continues
            sentences = _sentences_of(document, source, block, self.rules, parsed.problems)
            parsed.problems.kept += sum(map(len, sentences))
            if REPLACEMENT in "".join(document.lines):
                _count_replaced(document, sentences, parsed.problems)
            if self.keeps_titles and sentences and document.title and not document.continues:
                sentences.insert(0, " ".join(document.title.split()))
            parsed.documents.append(sentences)


class Inputs:
    """The input files of a run: their readers, sizes, short names and blocks."""

    def __init__(self, paths: Sequence[str], options: ReadingOptions) -> None:
        if not paths:
            raise UserError("no input files; check --input_dir and --input_regex")
        self.paths = sorted(paths)
        self.options = options
        self.counts: Counter[str] = Counter()
        self.characters: Counter[str] = Counter()
        self.unknown_tokens = 0
        self._num_logged = 0
        self._first_problem = ""
        folder = options.input_dir or os.path.commonpath(
            [os.path.dirname(os.path.abspath(path)) for path in self.paths]
        )
        self.names = {path: os.path.relpath(path, folder) for path in self.paths}
        self.sizes = {path: os.path.getsize(path) for path in self.paths}
        self.sources: dict[str, Source] = {}
        self._encodings: dict[str, str] = {}
        for path in self.paths:
            with InputStream(path) as stream:
                self.sources[path] = choose_source(
                    stream, options.input_format, options.source_options()
                )
                self._encodings[path] = stream.encoding
        self.counts["empty_files"] = sum(size == 0 for size in self.sizes.values())

    def blocks(self, path: str) -> Iterator[BlockOfSource]:
        """Yields the blocks of one input."""
        source, stream = self.sources[path], InputStream(path)
        stream.transcode(self._encodings[path])
        for block in source.blocks(stream):
            yield BlockOfSource(source, block)

    def work(self) -> Iterator[BlockOfSource]:
        """Yields the blocks of all inputs, in the order of the inputs."""
        return (work for path in self.paths for work in self.blocks(path))

    def progress(self, label: str, num_bytes: int | None = None, done: int = 0) -> BytesProgress:
        """Shows the progress over some bytes (None: of all inputs), of which some are done."""
        total = sum(self.sizes.values()) if num_bytes is None else num_bytes
        return BytesProgress(label, total, done, shown=self.options.show_progress)

    def reader(self) -> SentenceReader:
        """Returns the callable that turns a block into sentences, in whatever process."""
        options = self.options
        return SentenceReader(options.rules, options.strict, options.title == "keep")

    def trial_sentences(self) -> list[str]:
        """Returns a few sentences to try an encoder on; none where inputs hold ids."""
        lenient = SentenceReader(self.options.rules, strict=False)
        documents = (
            document
            for work in islice(self.work(), 4)
            if not isinstance(work.source, TFRecordSource)
            for document in lenient(work).documents
        )
        return list(islice((text for doc in documents for text in doc), _TRIAL_SENTENCES))

    def note(self, problems: Problems) -> None:
        """Adds a block's problems up, and logs the first ones of the run."""
        self.counts.update(problems.counts)
        self.characters.update(problems.lost)
        self.characters[KEPT] += problems.kept
        if problems.messages and not self._first_problem:
            self._first_problem = f"; first: {problems.messages[0]}"
        for message in problems.messages[: _SHOWN_PROBLEMS - self._num_logged]:
            self._num_logged += 1
            _log.warning("%s (counted, goes on)", message)

    def first_problem(self) -> str:
        """Returns the first problem's message behind a separator; "" if there was none."""
        return self._first_problem

    def skipped(self) -> dict[str, int]:
        """Returns what was left out or repaired, and how often."""
        return {kind: count for kind, count in sorted(self.counts.items()) if count}

"""Finds input files, and the reader that understands each of them."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path, PurePath

from ...data.encodings import certain_encoding, is_utf8, likely_encoding
from ...durable import PARTIAL
from ...errors import UserError
from ..blocks import BYTE_ORDER_MARK, Source
from ..sentences import SentenceRules, split_sentences
from ..streams import InputStream
from ..wrapping import Wrapping, recognise_wrapping
from .archives import (
    ZIP_MAGIC,
    ArchiveSource,
    UnreadableError,
    check_zip,
    is_tar,
)
from .json_documents import RecordReader
from .json_records import (
    JsonLinesSource,
    JsonSource,
    array_header,
)
from .json_scanning import scan_records
from .json_shapes import JsonStringsSource, first_strings, is_of_strings, other_shape
from .parquet import PARQUET_MAGIC, ParquetSource
from .text import FORMAT_SUFFIX, FormatSource, TextFileSource, TextSource, WrappedSource
from .tfrecord import INDEX_SUFFIX, TFRecordSource, is_tfrecord
from .unreadable import (
    Unreadable,
    binary_data,
    unreadable_bytes,
    unreadable_text,
)
from .wiki import WikiSource, begins_with_tag

_PEEKED_BYTES = 1 << 16
_FEWEST_LINES, _WHOLE_SHARE = 3, 0.9
_WHOLE = re.compile(r"[.!?;。！？；…][\"'”’」』）)\]]*$")
_COMPRESSION_SUFFIXES = (".gz", ".bz2", ".xz", ".zst", ".lzma")
_RECORD = re.compile(
    rb"\{|(?:(?:null|true|false|-?\d[\d.]*)\s*,\s*)+\{\s*[\"}]|\Z|\]\s*\}?\s*\Z|\]\s*\[\s*[{\]]"
)
_OBJECT = re.compile(rb'\{\s*["}]')
_CONTAINERS = ("tfrecord", "parquet", "tar", "zip")


@dataclass(frozen=True)
class SourceOptions:
    """Holds those of the reading options that readers of single files need.

    Attributes:
        longest_sentence: where over-long sentences are cut, in characters.
        text_key, title_key: where JSON records and Parquet rows hold their text and title; None
            for the usual.
        encoding: of text; None to find out.
        force: whether markup and the like are read as if they were text.
        wrapped: whether lines are joined to paragraphs: where they look wrapped ("auto"), in all
            text ("join") or nowhere ("keep").
    """

    longest_sentence: int = SentenceRules.longest
    text_key: str | None = None
    title_key: str | None = None
    encoding: str | None = None
    force: bool = False
    wrapped: str = "auto"

    def reader(self, wrapping: Wrapping | None = None) -> RecordReader:
        """Builds the reader that makes documents of JSON records."""
        return RecordReader(self.text_key, self.title_key, wrapping)

    def wrapping(self, beginning: str) -> Wrapping | None:
        """Recognises how a text is wrapped, by its beginning; None if its lines are to be kept."""
        if self.wrapped == "keep":
            return None
        return recognise_wrapping(beginning, is_certain=self.wrapped == "join")


_KINDS: dict[str, Callable[[SourceOptions], Source]] = {
    "wiki": lambda options: WikiSource(longest_sentence=options.longest_sentence),
    "json": lambda options: JsonSource(options.reader(), longest_sentence=options.longest_sentence),
    "jsonl": lambda options: JsonLinesSource(
        options.reader(), longest_sentence=options.longest_sentence
    ),
    "text": lambda options: TextSource(longest_sentence=options.longest_sentence),
    "text_file": lambda options: TextFileSource(longest_sentence=options.longest_sentence),
    "format": lambda options: FormatSource(longest_sentence=options.longest_sentence),
    "parquet": lambda options: ParquetSource(
        options.reader(), longest_sentence=options.longest_sentence, encoding=options.encoding
    ),
    "tfrecord": lambda options: TFRecordSource(),
}
INPUT_FORMATS = ("auto", *_KINDS)


def choose_source(
    stream: InputStream, input_format: str = "auto", options: SourceOptions | None = None
) -> Source:
    """Chooses the reader of a file or member: the one asked for, or by a look at its beginning.

    "auto" knows `<doc ` (wiki), arrays of JSON objects and `{"RECORDS": [...]}` (json), JSON
    objects one a line (jsonl), JSON strings in an array or one a line, Parquet, TFRecords, names
    that end in .format and text of one sentence a line (format); all else is text. Members of tar
    and zip files are looked at one by one, in whatever format. The stream gives UTF-8 afterwards.

    Raises:
        UserError: the format is unknown, the file is no text or in an unknown encoding, or its
            first JSON records have no text at the key.
    """
    if input_format not in INPUT_FORMATS:
        raise UserError(f"--input_format {input_format!r}: give one of {', '.join(INPUT_FORMATS)}")
    options = options or SourceOptions()
    container = _container(stream.peek(_PEEKED_BYTES))
    if container == "zip":
        check_zip(stream)
    if container in ("tar", "zip"):
        return ArchiveSource(
            is_zip=container == "zip",
            choose=lambda member: choose_source(member, input_format, options),
        )
    if container is not None and input_format in ("auto", container):
        source = _KINDS[container](options)
        if isinstance(source, ParquetSource):
            texts = source.first_texts(stream)
            source = replace(source, reader=options.reader(options.wrapping("\n\n".join(texts))))
        return source
    if input_format in _CONTAINERS and stream.peek(1):
        raise UserError(
            f"{stream.name}: does not begin as a {input_format} file; give another --input_format"
        )
    return _choose_text(stream, input_format, options)


def _choose_text(stream: InputStream, input_format: str, options: SourceOptions) -> Source:
    """Chooses the reader of what is no container; raises as :func:`choose_source`."""
    _refuse(stream, unreadable_bytes(stream.peek(_PEEKED_BYTES)))
    _decode(stream, options.encoding)
    beginning = stream.peek(_PEEKED_BYTES)
    if not options.force:
        _refuse(stream, unreadable_text(beginning, _bare(stream.name)))
    beginning = beginning.removeprefix(BYTE_ORDER_MARK).lstrip()
    if input_format == "auto":
        input_format = _recognise(stream.name, beginning)
        is_named = _bare(stream.name).endswith(FORMAT_SUFFIX)
        if input_format == "format" and options.wrapped == "join" and not is_named:
            input_format = "text"
        if input_format in ("text", "format") and not is_named and not options.force:
            if is_of_strings(beginning):
                return JsonStringsSource(
                    options.reader(options.wrapping("\n\n".join(first_strings(beginning)))),
                    longest_sentence=options.longest_sentence,
                )
            shape = other_shape(beginning)
            _refuse(stream, None if shape is None else Unreadable(shape, holds_text=True))
    source = _KINDS[input_format](options)
    if options.wrapped == "join" and input_format in ("wiki", "format"):
        raise UserError(
            f"--wrapped join: {stream.name} is of --input_format {input_format}, whose lines are "
            "not joined; read it by itself without the option"
            + (" or with --input_format text" if input_format == "format" else "")
        )
    if isinstance(source, JsonSource | JsonLinesSource):
        texts = _first_texts(stream.name, beginning, options.reader())
        return replace(source, reader=options.reader(options.wrapping("\n\n".join(texts))))
    if isinstance(source, TextSource | TextFileSource):
        stream.end_lines()
        wrapping = options.wrapping(_whole_lines(stream.peek(_PEEKED_BYTES)))
        if wrapping is not None:
            return WrappedSource(
                longest_sentence=options.longest_sentence,
                wrapping=wrapping,
                is_one_document=isinstance(source, TextFileSource),
            )
    return source


def _whole_lines(beginning: bytes) -> str:
    """Returns a file's beginning as text, without a last line that was cut off."""
    text = beginning.removeprefix(BYTE_ORDER_MARK).decode("utf-8", "replace")
    text = text.replace("\r\n", "\n")
    is_cut = len(beginning) == _PEEKED_BYTES
    return text.rpartition("\n")[0] if is_cut else text


def _container(beginning: bytes) -> str | None:
    """Names the kind of container that a file is; None for files that are text throughout."""
    if is_tfrecord(beginning):
        return "tfrecord"
    if beginning.startswith(PARQUET_MAGIC):
        return "parquet"
    if beginning.startswith(ZIP_MAGIC):
        return "zip"
    return "tar" if is_tar(beginning) else None


def _refuse(stream: InputStream, kind: Unreadable | None) -> None:
    if kind is not None:
        raise UnreadableError(f"{stream.name}: looks like {kind.description}", kind.holds_text)


def _decode(stream: InputStream, encoding: str | None) -> None:
    """Makes the stream give UTF-8."""
    beginning = stream.peek(_PEEKED_BYTES)
    encoding = encoding or certain_encoding(beginning)
    if encoding is not None:
        stream.transcode(encoding)
        try:
            stream.peek(1)
        except UnicodeError as error:
            raise UserError(
                f"{stream.name}: --encoding {encoding}: {error}; give its byte order, as utf-16le"
            ) from None
    elif not is_utf8(beginning):
        _refuse(stream, binary_data(beginning))
        guess = likely_encoding([beginning])
        raise UnreadableError(
            f"{stream.name}: looks like text that is not in UTF-8; give --encoding"
            + (f" (its beginning looks like {guess})" if guess else ""),
            holds_text=True,
        )


def _recognise(name: str, beginning: bytes) -> str:
    if begins_with_tag(beginning):
        return "wiki"
    header = array_header(beginning)
    if header is not None and _RECORD.match(beginning[len(header) :].lstrip()):
        return "json"
    if _OBJECT.match(beginning):
        return _recognise_objects(beginning)
    is_formatted = _bare(name).endswith(FORMAT_SUFFIX) or _has_a_sentence_a_line(beginning)
    return "format" if is_formatted else "text"


def _bare(name: str) -> str:
    """Returns a file's name without what says how it was compressed."""
    for suffix in _COMPRESSION_SUFFIXES:
        name = name.removesuffix(suffix)
    return name


def _has_a_sentence_a_line(beginning: bytes) -> bool:
    """Tells whether nearly all lines of a file's beginning are one whole sentence each.

    Somebody has split such a text already: splitting it again could only do harm, and leaving its
    short sentences out is not ours to decide.
    """
    lines = beginning.decode("utf-8", "replace").splitlines()
    if len(beginning) >= _PEEKED_BYTES - len(BYTE_ORDER_MARK):
        lines = lines[:-1]  # cut off
    lines = [line.strip() for line in lines if line.strip()]
    whole = sum(
        _WHOLE.search(line) is not None and len(split_sentences(line)) == 1 for line in lines
    )
    return len(lines) >= _FEWEST_LINES and whole >= _WHOLE_SHARE * len(lines)


def _recognise_objects(beginning: bytes) -> str:
    """Tells objects one a line from objects over several lines, and both from text."""
    line, newline, _ = beginning.partition(b"\n")
    try:
        json.loads(line, strict=False)
        return "jsonl"
    except (ValueError, RecursionError):
        scan = scan_records(beginning)
    if scan.ends:
        rest = line[scan.ends[0] :].lstrip()
        is_in_a_row = scan.ends[0] > len(line) or rest.startswith((b",", b"{"))
        return "json" if is_in_a_row or not newline else "jsonl"
    if scan.broken is not None:
        return "jsonl" if b'":' in line else "text"
    return "json" if newline else "jsonl"


def _first_texts(name: str, beginning: bytes, reader: RecordReader) -> list[str]:
    """Returns the texts of the first records.

    Raises:
        UserError: none of them has its text where it is looked for.
    """
    records = beginning.removeprefix(array_header(beginning) or b"")
    missing, texts = "", list[str]()
    end = 0
    scan = scan_records(records)
    if not scan.ends and scan.open_string is not None:
        return list(filter(None, [_unfinished_string(records[scan.open_string + 1 :])]))
    for next_end in scan.ends:
        record = records[end:next_end].lstrip(b", \t\r\n")
        end = next_end
        try:
            parsed = json.loads(record, strict=False)
        except (ValueError, RecursionError):
            continue
        if reader.document(parsed) is not None:
            texts.append(reader.text_of(parsed))
        else:
            missing = missing or reader.no_text(parsed)
    if missing and not texts:
        raise UserError(f"{name}: {missing}; give --text_key")
    return texts


def _unfinished_string(raw: bytes) -> str:
    """Returns the lines of a JSON string whose end has not been read; "" if there are none."""
    content = raw[: raw.rfind(b"\\n") + 2].decode("utf-8", "replace")
    try:
        return str(json.loads(f'"{content}"', strict=False))
    except ValueError:
        return ""


def find_inputs(input_dir: str, input_regex: str, output_dir: str | None = None) -> list[str]:
    """Finds the files below a folder whose name, or path from it, matches a pattern, sorted.

    The pattern is a glob; where nothing matches it as one, a regular expression of the whole.

    Links to folders are followed; each folder is read once, by whatever names it is reached.
    `x.format` is left out where `x` matches too: it holds the same text; so is `x.index`, which
    is no text.

    Args:
        input_dir: the folder.
        input_regex: the pattern.
        output_dir: where results go; what lies in such a subfolder is left out.

    Raises:
        UserError: there is no such folder or no such file, or a folder cannot be read.
    """
    if not os.path.isdir(input_dir):
        raise UserError(f"--input_dir {input_dir!r}: no such folder")
    pattern = PurePath(input_regex)
    if not pattern.parts or pattern.is_absolute() or ".." in pattern.parts:
        raise UserError(f"--input_regex {input_regex!r}: give a glob of paths below --input_dir")
    candidates = {
        (*parts, name): folder / name
        for folder, parts, names in _folders(input_dir, output_dir)
        for name in names
    }
    matching = [parts for parts in candidates if _matches(parts, pattern.parts)]
    if not any(candidates[parts].is_file() for parts in matching):
        with contextlib.suppress(re.error):
            expression = re.compile(input_regex)
            matching = [
                parts
                for parts in candidates
                if expression.fullmatch(parts[-1]) or expression.fullmatch("/".join(parts))
            ]
    paths = {str(candidates[parts]) for parts in matching if candidates[parts].is_file()}
    inputs = [
        path
        for path in sorted(paths)
        if not path.endswith(PARTIAL)
        and not any(
            path.endswith(suffix) and path.removesuffix(suffix) in paths
            for suffix in (FORMAT_SUFFIX, INDEX_SUFFIX)
        )
    ]
    if not inputs:
        raise UserError(
            f"--input_regex {input_regex!r}: matches no file in {input_dir!r}"
            + (f" outside of {output_dir!r}" if output_dir else "")
            + ", neither as a glob nor as a regular expression"
        )
    return inputs


def _folders(
    input_dir: str, output_dir: str | None
) -> Iterator[tuple[Path, tuple[str, ...], list[str]]]:
    """Yields a folder and those below it, by links too: path, parts from the top, files' names."""

    def refuse(error: OSError) -> None:
        raise UserError(f"--input_dir: {error.filename}: {error.strerror}; make it readable")

    seen = set[str]()
    if output_dir is not None and os.path.realpath(output_dir) != os.path.realpath(input_dir):
        seen.add(os.path.realpath(output_dir))
    tops = [input_dir]
    while tops:
        top = tops.pop(0)
        if not _is_new(top, seen):
            continue
        # What lies there itself goes first: a link to it gives nothing more.
        for folder, subfolders, names in os.walk(top, onerror=refuse):
            yield Path(folder), Path(folder).relative_to(input_dir).parts, names
            places = [os.path.join(folder, name) for name in sorted(subfolders)]
            tops += filter(os.path.islink, places)
            subfolders[:] = [
                os.path.basename(place)
                for place in places
                if not os.path.islink(place) and _is_new(place, seen)
            ]


def _is_new(folder: str, seen: set[str]) -> bool:
    """Tells whether a folder was not seen before, by any name; it is seen then."""
    place = os.path.realpath(folder)
    is_new = place not in seen
    seen.add(place)
    return is_new


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Tells whether a path's end matches a glob, whose `**` stands for any number of folders."""
    if not pattern:
        return True
    *rest, last = pattern
    if last == "**":
        return any(_matches(parts[:end], rest) for end in range(len(parts) + 1))
    return bool(parts) and fnmatchcase(parts[-1], last) and _matches(parts[:-1], rest)

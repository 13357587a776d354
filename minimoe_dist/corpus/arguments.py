"""Adds and reads the command-line arguments that the preprocessing scripts share."""

from __future__ import annotations

import argparse

from .reading import ReadingOptions
from .sentences import SentenceRules
from .sources import INPUT_FORMATS


def truth(text: str) -> bool:
    """Parses an option's "true" or "false".

    Raises:
        ArgumentTypeError: it is neither.
    """
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")
    return text.lower() == "true"


def add_reading_arguments(
    parser: argparse.ArgumentParser,
    *,
    input_regex: str | None = None,
    input_format: str = "auto",
) -> None:
    """Adds the arguments that say what is read and how.

    Args:
        parser: takes them.
        input_regex: default of --input_regex; None if it has to be given.
        input_format: default of --input_format.
    """
    rules = SentenceRules()
    add = parser.add_argument
    add("--input_dir", required=True, help="folder, searched with its subfolders")
    add(
        "--input_regex",
        required=input_regex is None,
        default=input_regex,
        help="glob of the files' names or, if none matches that, a regular expression of them"
        + ("" if input_regex is None else "; default: %(default)s"),
    )
    add("--output_dir", required=True, help="where the output goes")
    add("--num_processors", type=int, default=1, help="processes that read; default: 1")
    add(
        "--input_format",
        choices=INPUT_FORMATS,
        default=input_format,
        help="wiki: wikiextractor's <doc>; json: arrays of objects, as WuDao's; jsonl: an object "
        "a line; text: paragraphs, an empty line between documents; text_file: each file one "
        "document; format: one sentence a line; auto: by a look at each file, and at each member "
        "of tar and zip files; default: %(default)s",
    )
    add(
        "--wrapped",
        choices=("auto", "join", "keep"),
        default="auto",
        help="lines of paragraphs are joined: auto: where they look wrapped; join: in all text; "
        "keep: never; default: %(default)s",
    )
    add(
        "--encoding",
        help="of text; default: UTF-8, or GBK, Big5, UTF-16, HZ and ISO-2022 where certain",
    )
    add(
        "--text_key",
        "--text_column",
        help="key of the text in JSON records, column in Parquet; default: text or content",
    )
    add("--title_key", "--title_column", help="the same of the title; default: title")
    add("--title", choices=("drop", "keep"), default="drop", help="keep: a document's first line")
    add(
        "--minimum_words",
        type=int,
        default=rules.minimum_words,
        help="words that a sentence needs to stay; default: %(default)s",
    )
    add(
        "--minimum_characters",
        type=int,
        default=rules.minimum_characters,
        help="the same for Chinese and others without spaces, in characters; default: %(default)s",
    )
    add("--strict", action="store_true", help="fail at the first damaged line")
    add(
        "--force",
        action="store_true",
        help="read as text what looks like markup or a table, and "
        "keep a corpus that lost more than half of its text",
    )


def reading_options(arguments: argparse.Namespace) -> ReadingOptions:
    """Returns the options that parsed arguments ask for.

    Raises:
        ValueError: one is out of range.
    """
    return ReadingOptions(
        input_format=arguments.input_format,
        rules=SentenceRules(arguments.minimum_words, arguments.minimum_characters),
        title=arguments.title,
        text_key=arguments.text_key,
        title_key=arguments.title_key,
        encoding=arguments.encoding,
        wrapped=arguments.wrapped,
        force=arguments.force,
        strict=arguments.strict,
        num_processors=arguments.num_processors,
        input_dir=arguments.input_dir,
    )

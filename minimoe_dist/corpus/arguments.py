"""Command-line arguments that the preprocessing scripts share."""

from __future__ import annotations

import argparse
import logging

from ..errors import UserError
from .build import format_files
from .reading import ReadingOptions
from .sentences import SentenceRules
from .sources import INPUT_FORMATS, find_inputs


def truth(text: str) -> bool:
    """A value of an option that is true or false.

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
        help="glob of the files' names" + ("" if input_regex is None else "; default: %(default)s"),
    )
    add("--output_dir", required=True, help="where the output goes")
    add("--num_processors", type=int, default=1, help="processes that read; default: 1")
    add(
        "--input_format",
        choices=INPUT_FORMATS,
        default=input_format,
        help="wiki: wikiextractor's <doc>; json: arrays of objects, as WuDao's; jsonl: an object "
        "a line; text: paragraphs, an empty line between documents; text_file: each file one "
        "document; format: one sentence a line; auto: by a look at each file; default: %(default)s",
    )
    add("--text_key", help="key of the text in JSON records; default: text or content")
    add("--title_key", help="key of the title in JSON records; default: title")
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


def reading_options(given: argparse.Namespace) -> ReadingOptions:
    """The options that parsed arguments ask for.

    Raises:
        ValueError: one is out of range.
    """
    return ReadingOptions(
        input_format=given.input_format,
        rules=SentenceRules(given.minimum_words, given.minimum_characters),
        title=given.title,
        text_key=given.text_key,
        title_key=given.title_key,
        strict=given.strict,
        num_processors=given.num_processors,
        input_dir=given.input_dir,
    )


def format_command(description: str, input_regex: str | None, input_format: str = "auto") -> None:
    """What a formatting script does: raw files to text of one sentence a line."""
    parser = argparse.ArgumentParser(description=description)
    add_reading_arguments(parser, input_regex=input_regex, input_format=input_format)
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    try:
        options = reading_options(given)
        inputs = find_inputs(given.input_dir, given.input_regex)
        result = format_files(inputs, given.output_dir, options)
    except (UserError, OSError, RuntimeError) as error:
        parser.exit(2, f"error: {error}\n")
    print(
        f"{len(result.paths)} files, {result.num_documents:,} documents, "
        f"{result.num_sentences:,} sentences in {given.output_dir}; "
        f"left out or repaired: {result.skipped or 'nothing'}"
    )

"""The tools that make corpora, as subcommands of `minimoe-dist preprocess` and as scripts.

Nothing here imports torch, nor what the options of other commands are made of.
"""

import argparse
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from ..data.indexed import IndexedCorpus, find_corpora
from ..errors import UserError
from ..exit_status import ExitStatus
from .arguments import add_reading_arguments, reading_options, truth
from .build import build_indexed, format_files, merge_parts
from .inspection import draw_lengths, report, show_documents, show_pairs, statistics
from .portions import Portion
from .reading import ReadingOptions
from .sources import find_inputs
from .tokenizing import open_tokenizer


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")


@dataclass(frozen=True)
class Tool:
    """A tool.

    Attributes:
        summary: one line for the help pages.
        add_arguments: of its command line, to a parser.
        run: does the work that parsed arguments name, and returns the exit status.
        defaults: other defaults of its arguments.
    """

    summary: str
    add_arguments: Callable[..., None]
    run: Callable[[argparse.Namespace], int]
    defaults: Mapping[str, Any] = field(default_factory=dict)


def run_tool(tool: Tool, words: Sequence[str], prog: str | None = None) -> int:
    """Runs a tool and returns its exit status.

    Args:
        tool: of `TOOLS`, or one with other defaults.
        words: of the command line behind its name.
        prog: the name; None takes the script's.

    Raises:
        UserError: an argument, or what it names, is wrong.
        OSError: a file cannot be read or written.
        SystemExit: after a help page.
    """
    parser = _Parser(prog=prog, description=f"{tool.summary[:1].upper()}{tool.summary[1:]}.")
    tool.add_arguments(parser, **tool.defaults)
    arguments = parser.parse_args(list(words))
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    try:
        return tool.run(arguments)
    except (RuntimeError, ValueError) as error:  # a worker was lost, or said why
        if isinstance(error, UserError):
            raise
        raise UserError(str(error)) from None


def script(tool: Tool) -> None:
    """Runs a tool as a program of its own, which ends where its status is not 0."""
    try:
        status = run_tool(tool, sys.argv[1:])
        if status:
            sys.exit(status)
    except (UserError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(ExitStatus.REFUSED)


def _add_corpus_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--tokenizer_name_or_path", required=True, help="folder, package:NAME or hub name")
    add("--output_prefix", default="corpus", help="name of the corpus in --output_dir")
    add("--heldout_fraction", type=float, default=0.0, help="share of documents kept apart")
    add("--shard", metavar="i/n", help="read only the i-th of n shares of the inputs, i from 0")
    add("--overwrite", action="store_true", help="replace another corpus that stands there")


def _write_corpus(
    arguments: argparse.Namespace,
    options: ReadingOptions,
    *,
    do_lower_case: bool | None = None,
    whole_words: bool = False,
) -> int:
    portion = Portion.parse(arguments.shard)
    result = build_indexed(
        find_inputs(arguments.input_dir, arguments.input_regex, arguments.output_dir),
        os.path.join(arguments.output_dir, arguments.output_prefix),
        open_tokenizer(arguments.tokenizer_name_or_path, do_lower_case),
        options,
        heldout_fraction=arguments.heldout_fraction,
        whole_words=whole_words,
        portion=portion,
        overwrite=arguments.overwrite,
        tokenizer_name=arguments.tokenizer_name_or_path,
    )
    print(*result.report(), sep="\n")
    return ExitStatus.DONE


def _add_build(parser: argparse.ArgumentParser) -> None:
    add_reading_arguments(parser)
    _add_corpus_arguments(parser)
    add = parser.add_argument
    add("--do_lower_case", type=truth, nargs="?", const=True, metavar="true|false",
        help="whatever the tokenizer's files say of capitals")  # fmt: skip
    add("--whole_words", action="store_true", help="mark Chinese words for whole-word masks")


def _build(arguments: argparse.Namespace) -> int:
    return _write_corpus(
        arguments,
        reading_options(arguments),
        do_lower_case=arguments.do_lower_case,
        whole_words=arguments.whole_words,
    )


def _format(arguments: argparse.Namespace) -> int:
    options = reading_options(arguments)
    inputs = find_inputs(arguments.input_dir, arguments.input_regex, arguments.output_dir)
    result = format_files(inputs, arguments.output_dir, options)
    print(
        f"{len(result.paths)} files, {result.num_documents:,} documents, "
        f"{result.num_sentences:,} sentences in {arguments.output_dir}; "
        f"left out or repaired: {result.skipped or 'nothing'}",
        *result.losses.report(),
        sep="\n",
    )
    return ExitStatus.DONE


def _add_merge(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--input_dir", required=True, help="folder of the corpora")
    add("--input_regex", default="*_of_*", help="glob of their names, without .bin and .idx")
    add("--output_dir", required=True, help="where the new corpus goes")
    add("--output_prefix", default="corpus", help="its name there")
    add("--overwrite", action="store_true", help="replace a corpus that stands there")


def _merge(arguments: argparse.Namespace) -> int:
    result = merge_parts(
        find_corpora(os.path.join(arguments.input_dir, arguments.input_regex)),
        os.path.join(arguments.output_dir, arguments.output_prefix),
        overwrite=arguments.overwrite,
    )
    print(*result.report(), sep="\n")
    return ExitStatus.DONE


def _add_inspect(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("corpora", nargs="+", help="prefixes, folders or globs")
    add("--show_documents", type=int, default=0, metavar="N", help="decode N documents")
    add("--show_pairs", type=int, default=0, metavar="N", help="decode N pairs")
    add("--max_length", type=int, default=128, help="of pairs; default: %(default)s")
    add("--seed", type=int, default=776, help="of pairs; default: %(default)s")
    add("--histogram", metavar="PNG", help="draw lengths of the first corpus's texts there")
    add("--verify", action="store_true", help="read all and compare hashes with the manifest")
    add("--tokenizer_name_or_path", help="default: what the manifest says")


def _inspect(arguments: argparse.Namespace) -> int:
    """Returns 0 if all corpora are sound, 1 if one is damaged."""
    prefixes = [prefix for pattern in arguments.corpora for prefix in find_corpora(pattern)]
    try:
        for number, prefix in enumerate(prefixes):
            corpus = IndexedCorpus.open(prefix)
            stats = statistics(corpus, arguments.max_length, arguments.seed)
            print(report(corpus, stats))
            if arguments.verify:
                corpus.verify_hashes()
                print("  hashes: as the manifest says")
            if arguments.show_documents or arguments.show_pairs:
                name = arguments.tokenizer_name_or_path or corpus.tokenizer_name()
                tokenizer = open_tokenizer(name)
                print(*show_documents(corpus, tokenizer, arguments.show_documents), sep="\n")
                options = arguments.show_pairs, arguments.max_length, arguments.seed
                print(*show_pairs(corpus, tokenizer, *options), sep="\n")
            if arguments.histogram and number == 0:
                draw_lengths(stats, arguments.histogram, prefix)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return ExitStatus.FAILED
    return ExitStatus.DONE


def _add_tfrecord(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--input_dir", required=True, help="folder, searched with its subfolders")
    add("--input_regex", default="*.tfrecord", help="glob of the files; default: %(default)s")
    add("--output_dir", required=True, help="where the corpus goes")
    add("--num_processors", type=int, default=1, help="processes that read; default: 1")
    add("--strict", action="store_true", help="fail at the first damaged record")
    _add_corpus_arguments(parser)


def _from_tfrecord(arguments: argparse.Namespace) -> int:
    options = ReadingOptions(
        "tfrecord",
        strict=arguments.strict,
        input_dir=arguments.input_dir,
        num_processors=arguments.num_processors,
    )
    return _write_corpus(arguments, options)


TOOLS: Mapping[str, Tool] = {
    "format": Tool("raw files as text of one sentence a line", add_reading_arguments, _format),
    "build": Tool(
        "an indexed corpus of raw files, or of text of one sentence a line", _add_build, _build
    ),
    "merge": Tool("indexed corpora of one tokenizer as one", _add_merge, _merge),
    "inspect": Tool(
        "what is in indexed corpora: counts, lengths, text, pairs, hashes", _add_inspect, _inspect
    ),
    "tfrecord": Tool(
        "the published builder's TFRecords as an indexed corpus", _add_tfrecord, _from_tfrecord
    ),
}

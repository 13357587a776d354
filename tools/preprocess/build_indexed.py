"""Builds an indexed corpus from raw files, or from text of one sentence a line.

python tools/preprocess/build_indexed.py --input_dir text --input_regex '*.format' \
    --output_dir corpus --tokenizer_name_or_path bert-base-uncased --num_processors 8

Started again after it was killed, it goes on where it was. `--shard i/n` reads the i-th n-th of
the inputs, on whatever machine; merge_indexed.py joins the parts.
"""

import argparse
import logging
import os

from minimoe_dist.corpus.arguments import add_reading_arguments, reading_options, truth
from minimoe_dist.corpus.build import build_indexed
from minimoe_dist.corpus.portions import Portion
from minimoe_dist.corpus.sources import find_inputs
from minimoe_dist.corpus.tokenizing import open_tokenizer
from minimoe_dist.exit_status import ExitStatus


def main() -> None:
    """Parses the arguments and builds the corpus they name."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add_reading_arguments(parser)
    add = parser.add_argument
    add("--tokenizer_name_or_path", required=True, help="folder, package:NAME or hub name")
    add("--do_lower_case", type=truth, nargs="?", const=True, metavar="true|false",
        help="whatever the tokenizer's files say of capitals")  # fmt: skip
    add("--output_prefix", default="corpus", help="name of the corpus in --output_dir")
    add("--heldout_fraction", type=float, default=0.0, help="share of documents kept apart")
    add("--whole_words", action="store_true", help="mark Chinese words for whole-word masks")
    add("--shard", metavar="i/n", help="read only the i-th of n shares of the inputs, i from 0")
    add("--overwrite", action="store_true", help="replace another corpus that stands there")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    try:
        options, portion = reading_options(args), Portion.parse(args.shard)
        inputs = find_inputs(args.input_dir, args.input_regex, args.output_dir)
        result = build_indexed(
            inputs,
            os.path.join(args.output_dir, args.output_prefix),
            open_tokenizer(args.tokenizer_name_or_path, args.do_lower_case),
            options,
            heldout_fraction=args.heldout_fraction,
            whole_words=args.whole_words,
            portion=portion,
            overwrite=args.overwrite,
            tokenizer_name=args.tokenizer_name_or_path,
        )
    except (ValueError, OSError, RuntimeError) as error:
        parser.exit(ExitStatus.REFUSED, f"error: {error}\n")
    print(*result.report(), sep="\n")


if __name__ == "__main__":
    main()

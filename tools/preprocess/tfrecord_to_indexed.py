"""Turns the published builder's TFRecords of segment pairs into an indexed corpus.

python tools/preprocess/tfrecord_to_indexed.py --input_dir records --input_regex '*.tfrecord' \
    --output_dir corpus --tokenizer_name_or_path bert-base-uncased --num_processors 8

Ids are kept, [CLS] and [SEP] left out; each pair becomes a document of two sentences. The
tokenizer has to be the one that the records were written with: it gives the special ids.
"""

import argparse
import logging
import os

from minimoe_dist.corpus.build import build_indexed
from minimoe_dist.corpus.portions import Portion
from minimoe_dist.corpus.reading import ReadingOptions
from minimoe_dist.corpus.sources import find_inputs
from minimoe_dist.corpus.tokenizing import open_tokenizer
from minimoe_dist.exit_status import ExitStatus


def main() -> None:
    """Parses the arguments and converts the files they name."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--input_dir", required=True, help="folder, searched with its subfolders")
    add("--input_regex", default="*.tfrecord", help="glob of the files; default: %(default)s")
    add("--output_dir", required=True, help="where the corpus goes")
    add("--output_prefix", default="corpus", help="name of the corpus in --output_dir")
    add("--tokenizer_name_or_path", required=True, help="folder, package:NAME or hub name")
    add("--num_processors", type=int, default=1, help="processes that read; default: 1")
    add("--heldout_fraction", type=float, default=0.0, help="share of pairs kept apart")
    add("--shard", metavar="i/n", help="read only the i-th of n shares of the inputs, i from 0")
    add("--strict", action="store_true", help="fail at the first damaged record")
    add("--overwrite", action="store_true", help="replace a corpus that stands there")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    try:
        options = ReadingOptions("tfrecord", strict=args.strict, input_dir=args.input_dir,
                                 num_processors=args.num_processors)  # fmt: skip
        result = build_indexed(
            find_inputs(args.input_dir, args.input_regex, args.output_dir),
            os.path.join(args.output_dir, args.output_prefix),
            open_tokenizer(args.tokenizer_name_or_path),
            options,
            heldout_fraction=args.heldout_fraction,
            portion=Portion.parse(args.shard),
            overwrite=args.overwrite,
            tokenizer_name=args.tokenizer_name_or_path,
        )
    except (ValueError, OSError, RuntimeError) as error:
        parser.exit(ExitStatus.REFUSED, f"error: {error}\n")
    print(*result.report(), sep="\n")


if __name__ == "__main__":
    main()

"""Joins indexed corpora of one tokenizer: the parts of a job, or any that Megatron reads.

python tools/preprocess/merge_indexed.py --input_dir corpus --input_regex 'wiki_*_of_*' \
    --output_dir corpus --output_prefix wiki
"""

import argparse
import logging
import os

from minimoe_dist.corpus.build import merge_parts
from minimoe_dist.data.indexed import find_corpora
from minimoe_dist.exit_status import ExitStatus


def main() -> None:
    """Parses the arguments and merges the corpora they name."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--input_dir", required=True, help="folder of the corpora")
    add("--input_regex", default="*_of_*", help="glob of their names, without .bin and .idx")
    add("--output_dir", required=True, help="where the new corpus goes")
    add("--output_prefix", default="corpus", help="its name there")
    add("--overwrite", action="store_true", help="replace a corpus that stands there")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    try:
        result = merge_parts(
            find_corpora(os.path.join(args.input_dir, args.input_regex)),
            os.path.join(args.output_dir, args.output_prefix),
            overwrite=args.overwrite,
        )
    except (ValueError, OSError) as error:
        parser.exit(ExitStatus.REFUSED, f"error: {error}\n")
    print(*result.report(), sep="\n")


if __name__ == "__main__":
    main()

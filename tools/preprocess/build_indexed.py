"""Builds an indexed corpus from wikiextractor's files or text of one sentence a line.

python tools/preprocess/build_indexed.py --input_dir text --input_regex '*.format' \
    --output_dir corpus --tokenizer_name_or_path bert-base-uncased --num_processors 8
"""

import argparse
import logging
import os

from minimoe_dist.corpus.build import build_indexed
from minimoe_dist.corpus.reading import ReadingOptions
from minimoe_dist.corpus.sources import INPUT_FORMATS, find_inputs
from minimoe_dist.corpus.tokenizing import load_tokenizer


def main() -> None:
    """Parses the arguments and builds the corpus they name."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("--input_dir", required=True, help="folder, searched with its subfolders")
    add("--input_regex", required=True, help="glob of the files' names")
    add("--output_dir", required=True, help="where the corpus goes")
    add("--num_processors", type=int, default=1, help="processes that read and tokenize")
    add("--tokenizer_name_or_path", required=True, help="folder, package:NAME or hub name")
    add("--do_lower_case", action="store_true", default=None, help="overrides the tokenizer's")
    add("--output_prefix", default="corpus", help="name of the corpus in --output_dir")
    add("--heldout_fraction", type=float, default=0.0, help="share of documents kept apart")
    add("--input_format", choices=INPUT_FORMATS, default="auto")
    add("--strict", action="store_true", help="fail at the first damaged line")
    add("--overwrite", action="store_true", help="replace a corpus that stands there")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    try:
        options = ReadingOptions(
            input_format=given.input_format,
            strict=given.strict,
            num_processors=given.num_processors,
            input_dir=given.input_dir,
        )
        inputs = find_inputs(given.input_dir, given.input_regex)
        result = build_indexed(
            inputs,
            os.path.join(given.output_dir, given.output_prefix),
            load_tokenizer(given.tokenizer_name_or_path, given.do_lower_case),
            options,
            heldout_fraction=given.heldout_fraction,
            overwrite=given.overwrite,
            tokenizer_name=given.tokenizer_name_or_path,
        )
    except (ValueError, OSError, RuntimeError) as error:
        parser.exit(2, f"error: {error}\n")
    for prefix, manifest in result.parts():
        print(f"{prefix}: {manifest.summary()}")
    print(f"left out or repaired: {result.manifest.skipped or 'nothing'}")


if __name__ == "__main__":
    main()

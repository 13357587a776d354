"""Writes wikiextractor's files as text of one sentence a line, an empty line between documents.

python tools/preprocess/format_wiki.py --input_dir wiki --input_regex 'wiki_*' --output_dir text
"""

import argparse
import logging

from minimoe_dist.corpus.build import format_files
from minimoe_dist.corpus.reading import ReadingOptions
from minimoe_dist.corpus.sources import find_inputs


def main() -> None:
    """Parses the arguments and formats the files they name."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--input_dir", required=True, help="folder, searched with its subfolders")
    parser.add_argument("--input_regex", default="wiki_*", help="glob of the files' names")
    parser.add_argument("--output_dir", required=True, help="where each input's .format goes")
    parser.add_argument("--num_processors", type=int, default=1, help="processes that read")
    parser.add_argument("--strict", action="store_true", help="fail at the first damaged line")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    try:
        options = ReadingOptions(
            strict=arguments.strict,
            num_processors=arguments.num_processors,
            input_dir=arguments.input_dir,
        )
        inputs = find_inputs(arguments.input_dir, arguments.input_regex)
        result = format_files(inputs, arguments.output_dir, options)
    except (ValueError, OSError, RuntimeError) as error:
        parser.exit(2, f"error: {error}\n")
    print(
        f"{len(result.paths)} files, {result.num_documents:,} documents, "
        f"{result.num_sentences:,} sentences in {arguments.output_dir}; "
        f"left out or repaired: {result.skipped or 'nothing'}"
    )


if __name__ == "__main__":
    main()

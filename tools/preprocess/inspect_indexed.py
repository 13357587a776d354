"""Shows what is in indexed corpora: counts, lengths, text, pairs, a picture; checks their hashes.

python tools/preprocess/inspect_indexed.py corpus/wiki --show_pairs 3 --histogram lengths.png

The exit status is 0 if all corpora are sound, 1 if one is damaged, 2 if an argument is wrong.
"""

import argparse

from minimoe_dist.corpus.inspection import (
    draw_lengths,
    report,
    show_documents,
    show_pairs,
    statistics,
)
from minimoe_dist.corpus.tokenizing import open_tokenizer
from minimoe_dist.data.indexed import IndexedCorpus, find_corpora
from minimoe_dist.exit_status import ExitStatus


def main() -> None:
    """Parses the arguments and shows the corpora they name."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    add("corpora", nargs="+", help="prefixes, folders or globs")
    add("--show_documents", type=int, default=0, metavar="N", help="decode N documents")
    add("--show_pairs", type=int, default=0, metavar="N", help="decode N pairs")
    add("--max_length", type=int, default=128, help="of pairs; default: %(default)s")
    add("--seed", type=int, default=776, help="of pairs; default: %(default)s")
    add("--histogram", metavar="PNG", help="draw lengths of the first corpus's texts there")
    add("--verify", action="store_true", help="read all and compare hashes with the manifest")
    add("--tokenizer_name_or_path", help="default: what the manifest says")
    args = parser.parse_args()
    try:
        prefixes = [prefix for pattern in args.corpora for prefix in find_corpora(pattern)]
    except ValueError as error:
        parser.exit(ExitStatus.REFUSED, f"error: {error}\n")
    try:
        for number, prefix in enumerate(prefixes):
            corpus = IndexedCorpus.open(prefix)
            stats = statistics(corpus, args.max_length, args.seed)
            print(report(corpus, stats))
            if args.verify:
                corpus.verify_hashes()
                print("  hashes: as the manifest says")
            if args.show_documents or args.show_pairs:
                tokenizer = open_tokenizer(args.tokenizer_name_or_path or corpus.tokenizer_name())
                print(*show_documents(corpus, tokenizer, args.show_documents), sep="\n")
                options = args.show_pairs, args.max_length, args.seed
                print(*show_pairs(corpus, tokenizer, *options), sep="\n")
            if args.histogram and number == 0:
                draw_lengths(stats, args.histogram, prefix)
    except (ValueError, OSError) as error:
        parser.exit(ExitStatus.FAILED, f"error: {error}\n")


if __name__ == "__main__":
    main()

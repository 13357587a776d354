"""Writes wikiextractor's files as text of one sentence a line, an empty line between documents.

python tools/preprocess/format_wiki.py --input_dir wiki --input_regex 'wiki_*' --output_dir text

Its plain output and its --json are read, compressed or not.
"""

from minimoe_dist.corpus.arguments import format_command

if __name__ == "__main__":
    format_command(__doc__.partition("\n")[0], input_regex="wiki_*")

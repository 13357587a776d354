"""Writes wikiextractor's files as text of one sentence a line, an empty line between documents.

python tools/preprocess/format_wiki.py --input_dir wiki --input_regex 'wiki_*' --output_dir text

Its plain output and its --json are read, compressed or not.
"""

from dataclasses import replace

from minimoe_dist.corpus.tools import TOOLS, script

if __name__ == "__main__":
    script(replace(TOOLS["format"], defaults={"input_regex": "wiki_*"}))

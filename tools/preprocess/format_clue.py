"""Writes CLUECorpusSmall's files as text of one sentence a line, an empty line between documents.

python tools/preprocess/format_clue.py --input_dir clue --input_regex '*.txt' --output_dir text

Its lines are meant to be sentences, but many hold several: they are split as paragraphs are, and
what is too short for a sentence is left out. Documents end at empty lines.
"""

from dataclasses import replace

from minimoe_dist.corpus.tools import TOOLS, script

if __name__ == "__main__":
    script(replace(TOOLS["format"], defaults={"input_regex": "*.txt*", "input_format": "text"}))

"""Writes WuDao's files as text of one sentence a line, an empty line between documents.

python tools/preprocess/format_wudao.py --input_dir wudao --input_regex '*.json' --output_dir text

Each file is one JSON array of objects, bare or as {"RECORDS": [...]}, or has an object a line;
it is read in bounded memory, whatever its size, compressed or not.
"""

from dataclasses import replace

from minimoe_dist.corpus.tools import TOOLS, script

if __name__ == "__main__":
    script(replace(TOOLS["format"], defaults={"input_regex": "*.json*"}))

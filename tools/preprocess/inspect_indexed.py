"""Shows what is in indexed corpora: counts, lengths, text, pairs, a picture; checks their hashes.

python tools/preprocess/inspect_indexed.py corpus/wiki --show_pairs 3 --histogram lengths.png

The exit status is 0 if all corpora are sound, 1 if one is damaged, 2 if an argument is wrong.
"""

from minimoe_dist.corpus.tools import TOOLS, script

if __name__ == "__main__":
    script(TOOLS["inspect"])

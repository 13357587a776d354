"""Joins indexed corpora of one tokenizer: the parts of a job, or any that Megatron reads.

python tools/preprocess/merge_indexed.py --input_dir corpus --input_regex 'wiki_*_of_*' \
    --output_dir corpus --output_prefix wiki
"""

from minimoe_dist.corpus.tools import TOOLS, script

if __name__ == "__main__":
    script(TOOLS["merge"])

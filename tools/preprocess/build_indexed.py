"""Builds an indexed corpus from raw files, or from text of one sentence a line.

python tools/preprocess/build_indexed.py --input_dir text --input_regex '*.format' \
    --output_dir corpus --tokenizer_name_or_path bert-base-uncased --num_processors 8

Started again after it was killed, it goes on where it was. `--shard i/n` reads the i-th n-th of
the inputs, on whatever machine; merge_indexed.py joins the parts.
"""

from minimoe_dist.corpus.tools import TOOLS, script

if __name__ == "__main__":
    script(TOOLS["build"])

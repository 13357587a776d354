"""Turns the published builder's TFRecords of segment pairs into an indexed corpus.

python tools/preprocess/tfrecord_to_indexed.py --input_dir records --input_regex '*.tfrecord' \
    --output_dir corpus --tokenizer_name_or_path bert-base-uncased --num_processors 8

Ids are kept, [CLS] and [SEP] left out; each pair becomes a document of two sentences. The
tokenizer has to be the one that the records were written with: it gives the special ids.
"""

from minimoe_dist.corpus.tools import TOOLS, script

if __name__ == "__main__":
    script(TOOLS["tfrecord"])

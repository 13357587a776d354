"""Corpora and options whose pairs and batches are kept in golden/drawn_pairs.json.

The file was made by the first implementation, which drew one pair at a time with Python's own
generator. What is drawn must never change: a run that goes on after an update reads what it would
have read without it.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from random import Random

import numpy as np

from minimoe_dist.data.batches import MicroBatch, SpecialTokens
from minimoe_dist.data.pairs import Pair

Documents = list[list[int]]


def _documents(
    seed: int, count: int, sentences: Sequence[int], lengths: Sequence[int]
) -> Documents:
    """Documents of `sentences` (from, to) sentences of `lengths` (from, to) tokens, each drawn."""
    rng = Random(seed)
    return [
        [rng.randint(*lengths) for _ in range(rng.randint(*sentences))] for _ in range(count)
    ]  # fmt: skip


def _styles(seed: int, count: int, sizes: Sequence[int]) -> Documents:
    """Documents that differ in size and in how long their sentences are."""
    rng = Random(seed)
    documents = []
    for _ in range(count):
        size, longest = rng.choice(sizes), rng.choice([9, 30, 80])
        documents.append([rng.randint(1, longest) for _ in range(size)])
    return documents


def _with_holes(documents: Documents, seed: int) -> Documents:
    """The documents with empty sentences in between, and empty documents."""
    rng = Random(seed)
    holey: Documents = []
    for document in documents:
        holey += [[] for _ in range(rng.choice([0, 0, 1, 3]))]
        holey.append([n for length in document for n in (length, *[0] * rng.choice([0, 0, 1, 4]))])
    return [[0, 0], *holey, []]


DOCUMENTS: dict[str, Documents] = {
    "short": _documents(1, 700, (1, 9), (1, 40)),
    "long": _documents(2, 12, (300, 900), (4, 45)),
    "mixed": _styles(3, 300, [1, 4, 12, 40, 200]),
    "holey": _with_holes(_styles(4, 120, [1, 3, 12, 60]), 5),
    "one document": _documents(6, 1, (700, 700), (3, 30)),
    "one sentence": [[9]],
    "giants": _documents(7, 20, (1, 4), (100, 5000)),
    "ones": _documents(8, 15, (200, 700), (1, 1)),
    "hardly any": [*[[] for _ in range(1200)], [5, 7, 3, 8], *[[0] for _ in range(60)]],
}


@dataclass(frozen=True)
class Case:
    """Options of one source and the pairs of it that are kept: some of each epoch."""

    documents: str
    max_length: int
    seed: int = 7
    short_probability: float = 0.1
    marks: bool = False
    epochs: tuple[int, ...] = (0, 1)
    pairs: int = 150

    @property
    def name(self) -> str:
        """Tells the case from the others."""
        marks = ", marks" if self.marks else ""
        return (
            f"{self.documents}, length {self.max_length}, seed {self.seed}, "
            f"short {self.short_probability:g}{marks}"
        )


CASES = [
    *(Case(documents, length) for documents in DOCUMENTS for length in (5, 64, 128, 512)),
    *(Case("mixed", 128, seed) for seed in (0, 1, -3, 2**32 - 1, 2**63 + 5, 2**70 + 1)),
    *(Case("mixed", 96, short_probability=share) for share in (0.0, 0.5, 1.0)),
    *(Case(documents, 40, marks=True) for documents in ("short", "holey", "giants")),
    Case("short", 100, epochs=(2, 65_537, 2**33, 2**62), pairs=60),
]

BLEND = ("short", "holey", "one sentence", "long")
BLEND_WEIGHTS = {"union": (1.0, 1.0, 1.0, 1.0), "weighted": (2.0, 0.3, 1.0, 0.75)}


def numbers(num_samples: int, count: int) -> list[int]:
    """The first and last pairs of an epoch and some in between."""
    step = max(1, num_samples // count)
    return sorted({*range(0, num_samples, step), num_samples - 1})


def is_marked(tokens: np.ndarray) -> np.ndarray:
    """Which tokens go on with a word, bool; a token's number is its id."""
    return (tokens * 2_654_435_761 >> 7) % 5 < 2


def digest_of_pairs(pairs: Iterable[Pair]) -> str:
    """SHA-256 over everything that pairs say."""
    digest = hashlib.sha256()
    for pair in pairs:
        for tokens in (pair.first, pair.second):
            digest.update(len(tokens).to_bytes(8, "little") + tokens.astype("<i8").tobytes())
        for marks in (pair.first_continues, pair.second_continues):
            digest.update(b"-" if marks is None else marks.astype(np.uint8).tobytes())
        digest.update(bytes([pair.is_random_next]))
    return digest.hexdigest()


def digest_of_batches(batches: Iterable[MicroBatch]) -> str:
    """SHA-256 over all tensors of micro-batches, with their types and shapes."""
    digest = hashlib.sha256()
    for batch in batches:
        for name in ("input_ids", "attention_mask", "token_type_ids", "sample_ids", "labels"):
            tensor = getattr(batch, name)
            digest.update(name.encode())
            if tensor is not None:
                digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
                digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class Reading:
    """How a loader reads the blend: layout, masks, ranks, where it starts."""

    data_type: str
    whole_words: bool = False
    full_length: bool = False
    micro_batch_size: int = 24
    rank: int = 0
    world_size: int = 1
    consumed_samples: int = 0
    seed: int = 5
    steps: int = 6

    @property
    def name(self) -> str:
        """Tells the reading from the others."""
        return str(self).removeprefix("Reading")


READINGS = [
    Reading("bert_nil"),
    Reading("bert_nil", full_length=True),
    Reading("bert_mlm"),
    Reading("bert_mlm", whole_words=True),
    Reading("bert_mlm", whole_words=True, seed=2**64 - 2),
    Reading("roberta_nil"),
    Reading("roberta_mlm"),
    Reading("bert_mlm", micro_batch_size=7, rank=2, world_size=3, consumed_samples=1000),
    Reading("bert_mlm", micro_batch_size=300, seed=-1, steps=12),
]
READING_LENGTH = 72
ACCUMULATION_STEPS = 2


def special_tokens(vocab_size: int) -> SpecialTokens:
    """Ids that texts have too, so that separators inside a segment occur."""
    return SpecialTokens(cls=1, sep=2, pad=0, mask=3, vocab_size=vocab_size)


def continuing_pieces(vocab_size: int) -> np.ndarray:
    """Pieces that go on with a word wherever they stand, bool [vocab_size]."""
    return np.arange(vocab_size) % 7 == 3

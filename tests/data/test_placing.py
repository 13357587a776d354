"""Micro-batches that the loader's threads bring to the device."""

import threading
from itertools import islice

import torch

from minimoe_dist.data.batches import MicroBatch, SpecialTokens, UnmaskedCollate
from minimoe_dist.data.loader import PairLoader
from minimoe_dist.data.packed import PackedBatch
from minimoe_dist.data.pairs import PairSource
from minimoe_dist.data.placing import PlacedBatch, Placer
from minimoe_dist.data.signal_rows import SignalRows
from tests.data.memory_corpus import MemoryCorpus

CPU = torch.device("cpu")


class WatchedPlacer(Placer):
    """Notes the threads that call it."""

    def __init__(self) -> None:
        super().__init__(CPU, packed=True, longest=16)
        self.threads: set[str] = set()

    def __call__(self, micro: MicroBatch, recalled: SignalRows | None = None) -> PlacedBatch:
        self.threads.add(threading.current_thread().name)
        return super().__call__(micro, recalled)


def read(place: Placer | None) -> list[MicroBatch | PlacedBatch]:
    corpus = MemoryCorpus([[4, 2, 3]] * 20)
    special = SpecialTokens(cls=1, sep=2, pad=0, mask=3, vocab_size=200)
    with PairLoader(
        PairSource(corpus, 16, 1),
        UnmaskedCollate(special, 16),
        micro_batch_size=4,
        accumulation_steps=2,
        rank=0,
        world_size=1,
        seed=1,
        place=place,
    ) as loader:
        return [micro for step in islice(loader, 3) for micro in step.micro_batches]


def test_threads_of_the_loader_place_its_batches() -> None:
    place = WatchedPlacer()
    placed = read(place)
    assert place.threads == {"pair-loader"}
    for batch, micro in zip(placed, read(None), strict=True):
        assert isinstance(batch, PlacedBatch) and isinstance(micro, MicroBatch)
        packed = batch.arrived()
        assert isinstance(packed, PackedBatch)
        tokens = micro.input_ids[micro.attention_mask]
        assert torch.equal(packed.input_ids[: packed.num_tokens].long(), tokens)
        assert torch.equal(batch.micro.input_ids, micro.input_ids)


def test_a_batch_that_is_not_packed_arrives_as_it_is() -> None:
    for batch in read(Placer(CPU, packed=False)):
        assert isinstance(batch, PlacedBatch)
        arrived = batch.arrived()
        assert isinstance(arrived, MicroBatch)
        assert all(map(torch.equal, arrived.tensors(), batch.micro.tensors()))

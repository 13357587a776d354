"""Order of samples, resume, the reading threads, held-out batches."""

import gc
import threading
import time
from collections.abc import Sequence
from itertools import islice

import numpy as np
import pytest
import torch

from minimoe_dist.data.batches import MaskedCollate, MicroBatch, SpecialTokens
from minimoe_dist.data.loader import PairLoader, StepBatch, heldout_batches
from minimoe_dist.data.pairs import Pair, PairBatch
from tests.data.pair_batches import batch_of

SPECIAL = SpecialTokens(cls=1, sep=2, pad=0, mask=3, vocab_size=1000)
THREAD_NAME = "pair-loader"


class NumberedPairs:
    """Pairs whose tokens say epoch (A) and number (B); pair ``broken`` cannot be read."""

    def __init__(self, num_samples: int, broken: int | None = None) -> None:
        self.num_samples = num_samples
        self.broken = broken

    def draw(self, epochs: np.ndarray, numbers: np.ndarray) -> PairBatch:
        assert ((numbers >= 0) & (numbers < self.num_samples)).all()
        if self.broken in numbers:
            raise OSError("pair cannot be read")
        firsts, seconds = (10 + epochs)[:, None], (100 + numbers)[:, None]
        return batch_of([Pair(*both, False) for both in zip(firsts, seconds, strict=True)])


class PlainCollate:
    """Keeps epoch and number of every pair as input ids [b, 2]."""

    def __call__(self, pairs: Sequence[Pair], sample_ids: np.ndarray) -> MicroBatch:
        ids = torch.tensor([[p.first[0] - 10, p.second[0] - 100] for p in pairs]).reshape(-1, 2)
        return MicroBatch(ids, ids >= 0, ids, torch.from_numpy(sample_ids))


def load_steps(
    steps: int,
    *,
    pairs: NumberedPairs | None = None,
    micro_batch_size: int = 8,
    accumulation_steps: int = 2,
    rank: int = 0,
    world_size: int = 1,
    consumed_samples: int = 0,
    seed: int = 5,
    prefetch_steps: int = 2,
) -> list[StepBatch]:
    with PairLoader(
        pairs or NumberedPairs(100),
        PlainCollate(),
        micro_batch_size=micro_batch_size,
        accumulation_steps=accumulation_steps,
        rank=rank,
        world_size=world_size,
        seed=seed,
        consumed_samples=consumed_samples,
        prefetch_steps=prefetch_steps,
    ) as loader:
        return list(islice(loader, steps))


def read_samples(batches: list[MicroBatch]) -> list[tuple[int, int, int]]:
    """(position, epoch, number) of every sample."""
    rows = []
    for batch in batches:
        rows += torch.cat([batch.sample_ids[:, None], batch.input_ids], dim=1).tolist()
    return [tuple(row) for row in rows]


def samples_of(steps: list[StepBatch]) -> list[tuple[int, int, int]]:
    return read_samples([batch for step in steps for batch in step.micro_batches])


def reader_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == THREAD_NAME]


def new_loader(
    pairs: NumberedPairs | None = None,
    consumed_samples: int = 0,
    *,
    prefetch_steps: int = 2,
    world_size: int = 2,
) -> PairLoader:
    return PairLoader(
        pairs or NumberedPairs(100),
        PlainCollate(),
        micro_batch_size=4,
        accumulation_steps=2,
        rank=0,
        world_size=world_size,
        seed=5,
        consumed_samples=consumed_samples,
        prefetch_steps=prefetch_steps,
    )


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_share_the_micro_batches_that_one_rank_would_read(world_size: int) -> None:
    alone = load_steps(15)
    shared = [
        load_steps(15, rank=rank, world_size=world_size, micro_batch_size=8 // world_size)
        for rank in range(world_size)
    ]
    for number, step in enumerate(alone):
        for j, micro_batch in enumerate(step.micro_batches):
            union = [steps[number].micro_batches[j] for steps in shared]
            assert read_samples(union) == read_samples([micro_batch])


def test_positions_count_the_samples_of_the_run() -> None:
    assert [sample[0] for sample in samples_of(load_steps(4))] == list(range(64))


def test_steps_know_their_first_position() -> None:
    assert [step.first_position for step in load_steps(3, consumed_samples=7)] == [7, 23, 39]


def test_an_epoch_reads_every_sample_once() -> None:
    samples = samples_of(load_steps(19))
    for epoch in (0, 1, 2):
        assert sorted(k for _, e, k in samples if e == epoch) == list(range(100))


def test_epochs_have_different_orders() -> None:
    samples = samples_of(load_steps(13))
    first, second = ([k for _, e, k in samples if e == epoch] for epoch in (0, 1))
    assert first != second


def test_seeds_give_different_orders() -> None:
    assert samples_of(load_steps(3, seed=1)) != samples_of(load_steps(3, seed=2))


@pytest.mark.parametrize("consumed_samples", [0, 16, 96, 160, 163, 16 * 101])
def test_a_resumed_loader_goes_on_as_the_unbroken_one(consumed_samples: int) -> None:
    unbroken = samples_of(load_steps(consumed_samples // 16 + 6))
    resumed = samples_of(load_steps(5, consumed_samples=consumed_samples))
    assert resumed == unbroken[consumed_samples : consumed_samples + 80]


def test_another_number_of_ranks_goes_on_in_the_same_order() -> None:
    unbroken = samples_of(load_steps(10))
    halves = [
        load_steps(3, rank=rank, world_size=2, micro_batch_size=4, consumed_samples=112)
        for rank in range(2)
    ]
    assert sorted(samples_of(halves[0]) + samples_of(halves[1])) == unbroken[112:160]


def test_reading_ahead_does_not_count_as_consumed() -> None:
    with new_loader(consumed_samples=32) as loader:
        next(loader)
        next(loader)
        time.sleep(0.05)
        assert loader.consumed_samples == 64


@pytest.mark.parametrize("prefetch_steps", [0, 1, 5])
def test_reading_ahead_changes_no_sample(prefetch_steps: int) -> None:
    assert samples_of(load_steps(8, prefetch_steps=prefetch_steps)) == samples_of(load_steps(8))


def test_masks_are_the_same_after_a_resume() -> None:
    def loader(consumed_samples: int) -> PairLoader:
        return PairLoader(
            NumberedPairs(20),
            MaskedCollate(SPECIAL, 8, seed=1),
            micro_batch_size=4,
            accumulation_steps=1,
            rank=0,
            world_size=1,
            seed=5,
            consumed_samples=consumed_samples,
        )

    with loader(0) as unbroken, loader(36) as resumed:
        expected = [step.micro_batches[0] for step in islice(unbroken, 12)][9:]
        found = [step.micro_batches[0] for step in islice(resumed, 3)]
    for one, other in zip(expected, found, strict=True):
        assert one.labels is not None
        assert other.labels is not None
        assert torch.equal(one.labels, other.labels)


def test_closing_ends_the_threads() -> None:
    before = len(reader_threads())
    loader = new_loader()
    next(loader)
    loader.close()
    assert len(reader_threads()) == before


def test_a_loader_that_was_never_read_closes() -> None:
    loader = new_loader()
    loader.close()
    loader.close()


def test_a_closed_loader_gives_nothing_more() -> None:
    loader = new_loader()
    next(loader)
    loader.close()
    assert next(loader, None) is None


def test_a_forgotten_loader_ends_its_threads() -> None:
    others = set(reader_threads())
    loader = new_loader()
    next(loader)
    threads = set(reader_threads()) - others
    del loader
    gc.collect()
    for thread in threads:
        thread.join(timeout=5)
    assert len(threads) == 2 and not any(thread.is_alive() for thread in threads)


def test_closing_from_elsewhere_frees_a_waiting_reader() -> None:
    started, release = threading.Event(), threading.Event()

    class SlowPairs(NumberedPairs):
        def draw(self, epochs: np.ndarray, numbers: np.ndarray) -> PairBatch:
            started.set()
            release.wait(10)
            return super().draw(epochs, numbers)

    loader = new_loader(SlowPairs(100))
    results: list[StepBatch | None] = []
    reader = threading.Thread(target=lambda: results.append(next(loader, None)))
    reader.start()
    started.wait(10)
    closer = threading.Thread(target=loader.close)
    closer.start()
    reader.join(timeout=5)
    release.set()
    closer.join(timeout=5)
    assert results == [None]


def test_an_error_of_the_thread_is_raised_by_the_step_it_spoils() -> None:
    loader = new_loader(NumberedPairs(100, broken=37))
    with pytest.raises(OSError, match="pair cannot be read"):
        for _ in loader:
            pass
    assert loader.consumed_samples % 16 == 0 and loader.consumed_samples < 100


@pytest.mark.parametrize("prefetch_steps", [0, 1, 2, 5])
@pytest.mark.parametrize("broken", range(0, 100, 7))
def test_an_error_comes_at_its_own_step_however_far_is_read_ahead(
    prefetch_steps: int, broken: int
) -> None:
    place = [k for _, _, k in samples_of(load_steps(7))].index(broken)
    loader = new_loader(NumberedPairs(100, broken), prefetch_steps=prefetch_steps, world_size=1)
    with pytest.raises(OSError, match="pair cannot be read"):
        list(loader)
    assert loader.consumed_samples == place // 8 * 8


def test_an_error_ends_the_threads() -> None:
    before = len(reader_threads())
    with pytest.raises(OSError, match="pair cannot be read"):
        list(new_loader(NumberedPairs(100, broken=37)))
    assert len(reader_threads()) == before


@pytest.mark.parametrize(
    ("option", "value", "name"),
    [
        ("micro_batch_size", 0, "per_device_train_batch_size"),
        ("accumulation_steps", 0, "num_grad_accum_steps"),
        ("consumed_samples", -1, "consumed samples"),
        ("prefetch_steps", -1, "prefetch_steps"),
    ],
)
def test_sizes_out_of_range_are_refused(option: str, value: int, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        load_steps(1, **{option: value})  # type: ignore[arg-type]


def heldout_of_all_ranks(count: int, batch_size: int, world_size: int) -> list[list[MicroBatch]]:
    return [
        list(
            heldout_batches(
                NumberedPairs(100),
                PlainCollate(),
                count=count,
                batch_size=batch_size,
                rank=rank,
                world_size=world_size,
            )
        )
        for rank in range(world_size)
    ]


SPLITS = [(10, 4, 1), (10, 4, 2), (64, 8, 4), (37, 5, 3), (5, 1, 4), (2, 8, 4), (100, 7, 2)]


@pytest.mark.parametrize(("count", "batch_size", "world_size"), SPLITS)
def test_heldout_samples_are_each_on_one_rank_once(
    count: int, batch_size: int, world_size: int
) -> None:
    ranks = heldout_of_all_ranks(count, batch_size, world_size)
    samples = sorted(sample for batches in ranks for sample in read_samples(batches))
    assert samples == [(k, 0, k) for k in range(count)]


@pytest.mark.parametrize(("count", "batch_size", "world_size"), SPLITS)
def test_ranks_have_equally_many_heldout_batches(
    count: int, batch_size: int, world_size: int
) -> None:
    ranks = heldout_of_all_ranks(count, batch_size, world_size)
    assert len({len(batches) for batches in ranks}) == 1


@pytest.mark.parametrize(("count", "batch_size", "world_size"), SPLITS)
def test_heldout_batches_differ_by_at_most_one_sample(
    count: int, batch_size: int, world_size: int
) -> None:
    ranks = heldout_of_all_ranks(count, batch_size, world_size)
    sizes = {len(batch.sample_ids) for batches in ranks for batch in batches}
    assert max(sizes) <= batch_size and max(sizes) - min(sizes) <= 1


def test_heldout_samples_end_with_the_corpus() -> None:
    (batches,) = heldout_of_all_ranks(1000, 30, 1)
    assert sum(len(batch.sample_ids) for batch in batches) == 100


def test_a_heldout_count_of_none_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match="eval_sequences is 0"):
        heldout_of_all_ranks(0, 4, 1)

"""An index that is damaged where opening does not look: refused when it is read, never misread."""

from pathlib import Path

import numpy as np
import pytest

from minimoe_dist.data.indexed import IndexedCorpus
from minimoe_dist.data.indexed_format import IndexLayout
from minimoe_dist.data.pairs import PairSource

SENTENCES = 6000
LENGTHS = 1 + (np.arange(SENTENCES, dtype=np.int32) * 7) % 23
STARTS = np.concatenate([[0], np.cumsum(LENGTHS, dtype=np.int64)])
# Opening looks at 1,024 sentences that lie evenly, and at the ones behind them.
SEEN = np.linspace(0, SENTENCES - 1, 1024, dtype=np.int64)
UNSEEN = np.setdiff1d(np.arange(SENTENCES), np.concatenate([SEEN, SEEN + 1]))


def write(prefix: Path, lengths: np.ndarray, pointers: np.ndarray) -> str:
    """A corpus whose tokens say where they stand, with any index."""
    ends = np.arange(0, SENTENCES + 1, 50)
    with open(f"{prefix}.idx", "wb") as stream:
        stream.write(IndexLayout(np.dtype(np.int32), SENTENCES, len(ends)).header())
        stream.write(lengths.astype(np.int32).tobytes() + pointers.tobytes() + ends.tobytes())
    np.arange(STARTS[-1], dtype=np.int32).tofile(f"{prefix}.bin")
    return str(prefix)


def read_epoch(prefix: str, max_length: int = 64) -> None:
    """Opens a corpus and holds every token of an epoch against its place."""
    source = PairSource(IndexedCorpus.open(prefix), max_length, seed=1)
    numbers = np.arange(source.num_samples)
    batch = source.draw(np.zeros_like(numbers), numbers)
    assert len(batch) > 1000
    for pair in batch:
        for segment in pair[:2]:
            assert len(segment) > 0
            assert np.array_equal(segment, np.arange(segment[0], segment[0] + len(segment)))
            assert segment[0] >= 0 and segment[-1] < STARTS[-1]


def test_a_whole_index_is_read(tmp_path: Path) -> None:
    read_epoch(write(tmp_path / "c", LENGTHS, 4 * STARTS[:-1]))


DAMAGES = {
    "beyond the data": 1 << 40,
    "before the data": -(1 << 40),
    "largest": (1 << 63) - 1,
    "smallest": -(1 << 63),
    "zero": 0,
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_wrong_pointer_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    pointers = 4 * STARTS[:-1]
    pointers[UNSEEN[1000]] = DAMAGES[name]
    prefix = write(tmp_path / "c", LENGTHS, pointers)
    with pytest.raises(ValueError, match=r"c\.idx: wrong pointers at \[\d+, \d+\)") as refusal:
        read_epoch(prefix)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("length", [-1, -(1 << 31), (1 << 31) - 1, 0])
def test_a_wrong_length_is_refused_in_one_line(tmp_path: Path, length: int) -> None:
    lengths = LENGTHS.copy()
    lengths[UNSEEN[1000]] = length
    prefix = write(tmp_path / "c", lengths, 4 * STARTS[:-1])
    with pytest.raises(ValueError, match=r"c\.idx: wrong pointers at \[\d+, \d+\)"):
        read_epoch(prefix)


def test_a_pointer_off_by_one_token_is_refused(tmp_path: Path) -> None:
    pointers = 4 * STARTS[:-1]
    pointers[UNSEEN[1000]] += 4
    prefix = write(tmp_path / "c", LENGTHS, pointers)
    with pytest.raises(ValueError, match="wrong pointers"):
        read_epoch(prefix)


@pytest.mark.parametrize("seed", range(12))
def test_random_damage_is_refused_or_not_met(tmp_path: Path, seed: int) -> None:
    random = np.random.default_rng(seed)
    lengths, pointers = LENGTHS.copy(), 4 * STARTS[:-1]
    for place in random.choice(UNSEEN, int(random.integers(1, 200))):
        if random.random() < 0.5:
            lengths[place] = random.integers(-(1 << 31), 1 << 31) >> random.integers(0, 31)
        else:
            pointers[place] = random.integers(-(1 << 63), (1 << 63) - 1) >> random.integers(0, 63)
    prefix = write(tmp_path / "c", lengths, pointers)
    with pytest.raises(ValueError, match="wrong pointers"):
        read_epoch(prefix)

"""The cache's files: what is kept of signals, and what is read back."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from minimoe_dist.data.batches import MicroBatch
from minimoe_dist.data.cached_signals import SignalCache, SignalRows
from minimoe_dist.errors import UserError

HIDDEN = 8
LENGTHS = [5, 3, 8, 4, 6]


def facts(dtype: str, **more: Any) -> dict[str, Any]:
    return {"dtype": dtype, "hidden_size": HIDDEN, **more}


def signals(rows: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(rows, HIDDEN, generator=generator) * scale for scale in (1, 10, 0.01)]


def batch(numbers: list[int]) -> MicroBatch:
    """Pairs by number, of ids that tell them from each other, padded to 8."""
    mask = torch.tensor([[place < LENGTHS[number] for place in range(8)] for number in numbers])
    ids = torch.tensor(numbers)[:, None] * 10 + torch.arange(8)
    return MicroBatch(ids * mask, mask, torch.zeros_like(ids), torch.tensor(numbers))


def of_pair(number: int) -> list[Tensor]:
    return signals(LENGTHS[number], seed=number)


def written(folder: Path, dtype: str = "float32", **more: Any) -> SignalCache:
    """A cache of five pairs in blocks of two."""
    cache = SignalCache(folder, facts(dtype, **more), len(LENGTHS), 2)
    cache.make_folder()
    for block in cache.missing():
        parts = [
            (batch([number]), SignalRows.encode(of_pair(number), dtype))
            for number in cache.pairs_of(block)
        ]
        cache.write(block, parts, divergence=float(block), writer="one")
    cache.open()
    return cache


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_pairs_come_back_in_any_order(dtype: str, tmp_path: Path) -> None:
    cache = written(tmp_path / "cache", dtype)
    assert cache.num_blocks == 3 and cache.missing() == []
    assert cache.divergence == 1.0  # the mean of 0, 1 and 2
    cache.verify(range(3))
    order = [4, 0, 3, 1]
    rows = cache.recall(np.array(order), batch(order))
    wanted = [torch.cat(parts) for parts in zip(*map(of_pair, order), strict=True)]
    for found, signal in zip(rows.decode(), wanted, strict=True):
        tolerance = {"float32": 0.0, "bfloat16": 2**-8, "int8": 0.5 / 127}[dtype]
        most = signal.abs().amax(1, keepdim=True)
        assert ((found.float() - signal).abs() <= tolerance * most + 1e-12).all()
    assert (
        rows.tensors()[0].nbytes
        == sum(LENGTHS[n] for n in order)
        * 3
        * HIDDEN
        * ({"float32": 4, "bfloat16": 2, "int8": 1}[dtype])
    )


def test_rows_are_laid_out_as_batches_are() -> None:
    rows, micro = SignalRows.encode(signals(8), "int8"), batch([0, 1])
    padded = rows.padded(micro.attention_mask)
    for found, flat in zip(padded.decode(), rows.decode(), strict=True):
        assert torch.equal(found[micro.attention_mask], flat)
        assert not found[~micro.attention_mask].any()
    for found, flat in zip(rows.with_rows(16).decode(), rows.decode(), strict=True):
        assert torch.equal(found[:8], flat) and not found[8:].any()


@pytest.mark.parametrize("number", [torch.nan, torch.inf, -torch.inf])
def test_numbers_that_are_not_finite_stay_so_in_8_bits(number: float) -> None:
    given = signals(4)
    given[1][2, 3] = number
    query, key, value = SignalRows.encode(given, "int8").decode()
    assert not key[2].isfinite().any()
    assert query.isfinite().all() and value.isfinite().all() and key[[0, 1, 3]].isfinite().all()


def test_zeros_stay_zeros() -> None:
    assert not torch.cat(SignalRows.encode([torch.zeros(2, 4)] * 3, "int8").decode()).any()


def test_another_text_is_not_answered_from_the_cache(tmp_path: Path) -> None:
    cache = written(tmp_path / "cache")
    changed = batch([2])
    changed.input_ids[0, 4] += 1
    for micro in (changed, batch([0])):
        with pytest.raises(UserError, match=r"block_000001\S+: pair 2 is of another text than"):
            cache.recall(np.array([2]), micro)


def test_a_block_of_other_facts_or_sizes_is_refused(tmp_path: Path) -> None:
    written(tmp_path / "cache", seed=1)
    other = SignalCache(tmp_path / "cache", facts("float32", seed=2), len(LENGTHS), 2)
    with pytest.raises(UserError, match=r"block_000000\.safetensors: is of another cache; delete"):
        other.open()
    (tmp_path / "cache" / "block_000001.safetensors").unlink()
    same = SignalCache(tmp_path / "cache", facts("float32", seed=1), len(LENGTHS), 2)
    assert same.missing() == [1]
    with pytest.raises(UserError, match=r"teacher\.cache_dir: \S+block_000001\S+ is not there"):
        same.open()

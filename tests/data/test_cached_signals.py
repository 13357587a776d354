"""The cache's files: what is kept of signals, and what is read back."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from minimoe_dist.data.batches import MicroBatch
from minimoe_dist.data.cached_signals import SignalCache
from minimoe_dist.data.signal_rows import SignalRows
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
    cache.make_folder("one")
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


def test_many_may_make_one_folder_at_a_time(tmp_path: Path) -> None:
    def make(number: int) -> None:
        for _ in range(20):
            cache = SignalCache(tmp_path / "cache", facts("int8"), 4, 2)
            cache.make_folder(f"writer{number}")
            (tmp_path / "cache" / "cache.json").unlink(missing_ok=True)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(make, range(4)))
    assert not list((tmp_path / "cache").glob("*.partial"))


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


def with_metadata(path: Path, change: Any) -> None:
    with safe_open(path, "pt") as file:
        about, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(tensors, about)
    save_file(tensors, path, about)


def make_negative(path: Path) -> None:
    with_metadata(path, lambda tensors, about: tensors["lengths"].neg_())


def make_fractions(path: Path) -> None:
    with_metadata(path, lambda tensors, about: tensors.update(lengths=tensors["lengths"].double()))


def lose_scales(path: Path) -> None:
    with_metadata(path, lambda tensors, about: tensors.pop("scales"))


def shorten_scales(path: Path) -> None:
    with_metadata(path, lambda tensors, about: tensors.update(scales=tensors["scales"][1:].clone()))


def take_place(path: Path) -> None:
    with_metadata(path, lambda tensors, about: about.update(block="77"))


def flip_a_bit(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-9, os.SEEK_END)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 4]))


@pytest.mark.parametrize(
    "spoil",
    [
        make_negative, make_fractions, lose_scales, shorten_scales, take_place, flip_a_bit,
        lambda path: os.truncate(path, path.stat().st_size - 7),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"\xff" * 64),
        lambda path: with_metadata(path, lambda tensors, about: about.pop("divergence")),
        lambda path: with_metadata(
            path, lambda tensors, about: tensors.update(rows=tensors["rows"].float())
        ),
    ],
)  # fmt: skip
def test_a_block_that_is_not_what_was_written_is_refused_by_name(
    spoil: Any, tmp_path: Path
) -> None:
    written(tmp_path / "cache", "int8")
    spoil(tmp_path / "cache" / "block_000001.safetensors")
    cache = SignalCache(tmp_path / "cache", facts("int8"), len(LENGTHS), 2)
    with pytest.raises(
        UserError, match=r"block_000001\.safetensors: is (damaged|of another cache)"
    ):
        cache.open()
        cache.verify([0, 2])
        cache.verify([1])

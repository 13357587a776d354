"""Dropout and router noise that depend on the sample, not on the device that holds it.

Every random number is a hash of (seed, sample, position, site, column): the same sample gets the
same masks on one rank or on many, in any micro-batch, on CPU or GPU, and again after a resume, and
there is no generator state to save.

Shapes: B samples, S positions, T packed tokens, H columns.
"""

import torch
from torch import Tensor

from .errors import UserError

_SITE_STEP = 0x9E3779B1  # 2**32 / golden ratio: consecutive sites land far apart
_RELATION_SITE = 2**20  # beyond any layer's
_HIGH_BITS = 24  # a float32 holds 24 bits exactly, so uniforms have no rounding bias


def _as_int32(value: int) -> int:
    """Returns the int32 with the same low bits (torch has no full uint32 arithmetic)."""
    value &= 0xFFFFFFFF
    return value - (1 << 32) if value >= 1 << 31 else value


def _shift_right(bits: Tensor, count: int) -> Tensor:
    """Shifts int32 right logically; ``>>`` alone would smear the sign bit."""
    return (bits >> count) & ((1 << (32 - count)) - 1)


def hash_bits(bits: Tensor) -> Tensor:
    """Mixes the bits of an int32 tensor bijectively, by xor-shifts and odd multiplications."""
    bits = bits ^ _shift_right(bits, 16)
    bits = bits * _as_int32(0x7FEB352D)
    bits = bits ^ _shift_right(bits, 15)
    bits = bits * _as_int32(0x846CA68B)
    return bits ^ _shift_right(bits, 16)


def sample_keys(seed: int, sample_ids: Tensor, length: int) -> Tensor:
    """Computes a 32-bit key for every position of every sample.

    Args:
        seed: the run's seed.
        sample_ids: int64 [B], unique for every sample a run draws.
        length: S, padded length; a position's key does not depend on it.

    Returns:
        int32 [B, S].
    """
    positions = torch.arange(length, device=sample_ids.device, dtype=torch.int32)
    return hash_bits(_sample_hashes(seed, sample_ids)[:, None] + hash_bits(positions)[None, :])


def token_keys(seed: int, sample_ids: Tensor, sample: Tensor, position: Tensor) -> Tensor:
    """Computes the keys of :func:`sample_keys` for packed tokens.

    Args:
        seed: the run's seed.
        sample_ids: int64 [B], unique for every sample a run draws.
        sample: integers [T], each token's sample by its place in the batch, below B.
        position: integers [T], each token's position in its sample.

    Returns:
        int32 [T].
    """
    hashes = _sample_hashes(seed, sample_ids).index_select(0, sample)
    return hash_bits(hashes + hash_bits(position.to(torch.int32)))


def _sample_hashes(seed: int, sample_ids: Tensor) -> Tensor:
    # Torch wraps on conversion, so both halves of the 64-bit id enter the hash.
    low = sample_ids.to(torch.int32)
    high = (sample_ids >> 32).to(torch.int32)
    return hash_bits(hash_bits(low ^ _as_int32(seed)) ^ hash_bits(high + _as_int32(_SITE_STEP)))


class NoiseKeys:
    """Keys of one micro-batch, handed down through a model's blocks.

    Args:
        keys: int32 [B, S] of :func:`sample_keys`, or [T] of :func:`token_keys`.
        rows: int64 [T], flat indices of the packed tokens, or None where all of ``keys`` are.
    """

    def __init__(self, keys: Tensor, rows: Tensor | None) -> None:
        flat = keys.reshape(-1)
        self.padded_keys = keys
        self.token_keys = flat if rows is None else flat.index_select(0, rows)

    def _bits(self, row_keys: Tensor, columns: int, site: int) -> Tensor:
        """Hashes each element of a site: int32 [*row_keys.shape, columns]."""
        keys = hash_bits(row_keys + _as_int32(site * _SITE_STEP))
        column = torch.arange(columns, device=keys.device, dtype=torch.int32)
        bits = keys.unsqueeze(-1) ^ hash_bits(column + _as_int32(site))
        bits = bits * _as_int32(0x2C1B3C6D)
        bits ^= _shift_right(bits, 15)
        bits *= _as_int32(0x297A2D39)
        return bits

    def uniform(self, columns: int, site: int) -> Tensor:
        """Draws float32 [T, columns] from [0, 1)."""
        bits = _shift_right(self._bits(self.token_keys, columns, site), 32 - _HIGH_BITS)
        return bits.to(torch.float32) * 2.0**-_HIGH_BITS

    def dropout(self, values: Tensor, probability: float, site: int) -> Tensor:
        """Drops elements of packed rows ``values`` [T, H] and scales the others."""
        return _drop(values, self._bits(self.token_keys, values.shape[-1], site), probability)

    def dropout_attention(
        self, values: Tensor, probability: float, site: int, first_head: int = 0
    ) -> Tensor:
        """Drops attention probabilities [B, heads, S, S], of heads from ``first_head`` on."""
        heads, length = values.shape[1], values.shape[-1]
        head_numbers = torch.arange(first_head, first_head + heads, dtype=torch.int32)
        head_keys = hash_bits(head_numbers.to(values.device))
        row_keys = self.padded_keys[:, None, :] ^ head_keys[None, :, None]
        return _drop(values, self._bits(row_keys, length, site), probability)


def _drop(values: Tensor, bits: Tensor, probability: float) -> Tensor:
    # int32 hashes are uniform in [-2**31, 2**31): comparing them saves a conversion to float.
    threshold = round(probability * 2**32) - 2**31
    keep_mask = bits >= min(threshold, 2**31 - 1)
    return values * keep_mask.to(values.dtype).mul_(1.0 / (1.0 - probability))


class RelationDropout:
    """Dropout of relations, [samples, heads, query, key] of each of query, key and value.

    What is dropped depends on the sample, the head and the two positions, not on how a batch is
    padded, cut into tiles or spread over ranks.

    Args:
        keys: int32 [B, S] of :func:`sample_keys`.
        probability: of a relation to be dropped, in [0, 1).

    Raises:
        UserError: a probability out of range.
    """

    def __init__(self, keys: Tensor, probability: float) -> None:
        if not 0.0 <= probability < 1.0:
            raise UserError(f"relation_dropout: {probability} is not in [0, 1); choose 0 to 0.5")
        self._keys = keys
        self._probability = probability

    def factors(self, signal: int, samples: slice, heads: slice, length: int) -> Tensor:
        """Returns 0, or 1 / (1 - probability), for each relation of a tile.

        Args:
            signal: 0, 1, 2: relations of queries, keys, values.
            samples: of the batch.
            heads: relation heads.
            length: positions.

        Returns:
            float32 [samples · heads, length, length], heads within samples.
        """
        keys = self._keys[samples, :length]
        ones = torch.ones((len(keys), heads.stop - heads.start, length, length), device=keys.device)
        noise = NoiseKeys(keys, None)
        site = _RELATION_SITE + signal
        return noise.dropout_attention(ones, self._probability, site, heads.start).flatten(0, 1)

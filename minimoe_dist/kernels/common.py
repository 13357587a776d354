"""Helpers that several kernels share: random bits, tile sizes, precision of products."""

import torch
import triton
import triton.language as tl


@triton.jit
def hash_bits(bits):
    """Mixes uint32 bits as `models.noise.hash_bits` does."""
    bits = bits ^ (bits >> 16)
    bits = bits * 0x7FEB352D
    bits = bits ^ (bits >> 15)
    bits = bits * 0x846CA68B
    return bits ^ (bits >> 16)


@triton.jit
def keep_mask(row_bits, column_bits, threshold):
    """Tells which elements of [rows, columns] dropout keeps, as `models.noise` decides it.

    Args:
        row_bits: uint32 [rows], hashed keys of the rows.
        column_bits: uint32 [columns], hashed numbers of the columns.
        threshold: int32; bits below it are dropped.
    """
    bits = row_bits[:, None] ^ column_bits[None, :]
    bits = bits * 0x2C1B3C6D
    bits = bits ^ (bits >> 15)
    bits = bits * 0x297A2D39
    return bits.to(tl.int32, bitcast=True) >= threshold


def power_of_two(size: int, at_least: int = 16) -> int:
    """Rounds ``size`` up to a power of two; products want 16 or more."""
    return max(at_least, triton.next_power_of_2(size))


def product_precision(dtype: torch.dtype) -> str:
    """Chooses how ``tl.dot`` multiplies: float32 in three TF32 products, with hardly a loss."""
    return "tf32x3" if dtype == torch.float32 else "tf32"


def dropout_numbers(probability: float, site: int) -> tuple[int, int, float]:
    """Returns a site's key, the threshold of dropout, as `models.noise` has them, and 1 / (1 - p).

    The first two are signed, as a kernel takes 32-bit integers.
    """
    site_bits = (site * 0x9E3779B1) & 0xFFFFFFFF
    if site_bits >= 1 << 31:
        site_bits -= 1 << 32
    threshold = min(round(probability * 2**32) - 2**31, 2**31 - 1)
    return site_bits, threshold, 1.0 / (1.0 - probability)

"""Seeded damage to the bytes of a file: flips, cuts, copies, splices and extreme numbers."""

import random

EXTREMES = (
    *(b"NaN", b"1e999", b"-1", b"0", b"99999999999999999999", b"9" * 5000, b'"big"', b"null"),
    *(b"[" * 2000, b'{"a":' * 500, b"\0" * 64, b"\xff\xfe", b"- " * 300, b"&a [*a]", b"true"),
    *((2**bits - 1).to_bytes(8, "little") for bits in (7, 31, 32, 40, 63, 64)),
)


def mutated(data: bytes, others: list[bytes], draw: random.Random) -> bytes:
    """Returns the data with one to four kinds of damage."""
    for _ in range(draw.randint(1, 4)):
        start = draw.randrange(len(data) + 1)
        stop = min(len(data), start + draw.choice((1, 2, 8, 64, 1024)))
        kind = draw.randrange(6)
        if kind == 0 and data:
            flipped = bytearray(data)
            for _ in range(draw.randint(1, 8)):
                flipped[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
            data = bytes(flipped)
        elif kind == 1:
            data = data[:start]
        elif kind == 2:
            data = data[:start] + data[start:stop] * draw.choice((2, 3, 100)) + data[stop:]
        elif kind == 3:
            data = data[:start] + data[stop:]
        elif kind == 4:
            data = data[:start] + draw.choice(EXTREMES) + data[draw.choice((start, stop)) :]
        else:
            other = draw.choice(others)
            data = data[:start] + other[draw.randrange(len(other) + 1) :]
    return data

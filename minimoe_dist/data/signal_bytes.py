"""Says how many bytes a teacher's relation signals take where they are kept."""

SIGNALS = 3  # queries, keys and values
ITEM_BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}
_SCALE_BYTES = 4  # of each signal of a token, in 8 bits


def bytes_per_token(hidden_size: int, dtype: str) -> int:
    """Returns the bytes of a token's queries, keys and values.

    Args:
        hidden_size: H, the teacher's width.
        dtype: ``float32``, ``bfloat16`` or ``int8``.
    """
    scales = SIGNALS * _SCALE_BYTES if dtype == "int8" else 0
    return SIGNALS * hidden_size * ITEM_BYTES[dtype] + scales

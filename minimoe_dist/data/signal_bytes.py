"""Says how many bytes a teacher's relation signals take where they are kept."""

RELATIONS = 3  # queries, keys and values
ITEM_BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}
_SCALE_BYTES = 4  # of each signal of a token, in 8 bits


def bytes_per_token(hidden_size: int, dtype: str, signals: int = RELATIONS) -> int:
    """Returns the bytes of a token's signals.

    Args:
        hidden_size: H, the teacher's width.
        dtype: ``float32``, ``bfloat16`` or ``int8``.
        signals: n: queries, keys and values, perhaps last states behind them.
    """
    scales = signals * _SCALE_BYTES if dtype == "int8" else 0
    return signals * hidden_size * ITEM_BYTES[dtype] + scales

"""Counts the rows of batches that are filled up. Imports no torch: plans count so too.

What compiled code takes from here belongs to its fingerprint, see `compiled.compiling`.
"""

MASKED_SHARE = 0.15  # of a sample's positions that are to be predicted
MOST_MASKED = 20  # of a sample
_SIZES = 16  # numbers of rows that a batch is filled up to, evenly spaced
_ROW_MULTIPLE = 128


def rows_for(num_tokens: int, most: int) -> int:
    """Returns the number of rows that a batch of tokens is filled up to: one of 16 up to ``most``.

    A pass is compiled and captured for each, and computes at most a sixteenth of ``most``
    more than it must.
    """
    step = -(-most // (_SIZES * _ROW_MULTIPLE)) * _ROW_MULTIPLE
    return max(step, -(-num_tokens // step) * step)


def most_predicted(length: int) -> int:
    """Returns the most positions that a sample of at most ``length`` has to predict."""
    return max(1, min(MOST_MASKED, round(MASKED_SHARE * length)))

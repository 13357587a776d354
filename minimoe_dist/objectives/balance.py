"""The load-balance term of a mixture of experts (MiniMoE, ACL 2023, section 3)."""

from collections.abc import Sequence

import torch
from torch import Tensor


def balance_loss(
    probability_sums: Sequence[Tensor],
    token_counts: Sequence[Tensor],
    *,
    scale: float = 1.0,
    plain_blocks: int = 0,
) -> Tensor:
    """Averages over blocks E · Σ mean probability · fraction of tokens, summed over experts.

    1 where tokens are spread evenly, E where all go to one expert with certainty.

    Args:
        probability_sums: per block float32 [E], sums of router probabilities over local tokens.
        token_counts: per block float32 [E], tokens per expert over *all* ranks.
        scale: the number of ranks where the result is averaged over ranks: probability sums stay
            local, so each rank gives its share.
        plain_blocks: blocks without a router to count as 1 each; the published implementation does
            so with plain feed-forward blocks beside attention experts.

    Returns:
        A scalar; zero without blocks.
    """
    if not probability_sums:
        return torch.zeros(())
    terms = []
    for probability_sum, count in zip(probability_sums, token_counts, strict=True):
        tokens = count.sum().clamp(min=1.0)
        mean, fraction = probability_sum * (scale / tokens), count / tokens
        terms.append(count.numel() * (mean * fraction).sum())
    return (torch.stack(terms).sum() + plain_blocks) / (len(terms) + plain_blocks)

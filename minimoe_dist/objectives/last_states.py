"""The squared error of a student's last states, mapped to its teacher's width.

Relations say how a teacher's tokens lie to each other in what its relation layer reads; what stands
on an encoder, a task's head, reads the states behind that layer. The teacher's are normalised as
LayerNorm without weights does, which makes the error a share of their mean square, whatever their
size (as in data2vec, Baevski et al. 2022, section 3.3).
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def normalised(states: Tensor) -> Tensor:
    """Returns states [..., W] with mean 0 and variance 1 of each row."""
    return F.layer_norm(states, states.shape[-1:])


def last_states_loss_sum(student: Tensor, teacher: Tensor, is_token: Tensor) -> Tensor:
    """Sums the mean squared error of each token's states.

    Computation is in float32 (float64 if the student is float64) whatever the inputs' types.

    Args:
        student: [..., W], mapped to the teacher's width.
        teacher: [..., W]; gets no gradient.
        is_token: bool or int [...], which rows count; the others may hold anything.

    Returns:
        A scalar; divided by the number of tokens it is 1 for a student that gives zeros.
    """
    assert student.shape == teacher.shape, (student.shape, teacher.shape)
    dtype = torch.promote_types(student.dtype, torch.float32)
    rows = is_token.bool()[..., None]
    error = torch.where(rows, student.to(dtype) - normalised(teacher.detach().to(dtype)), 0.0)
    return error.square().mean(-1).sum()

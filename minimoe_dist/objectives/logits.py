"""Task losses: against labels, and against a fine-tuned teacher's predictions.

Shapes: N predictions, C classes.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def label_loss_sum(logits: Tensor, labels: Tensor) -> Tensor:
    """Sums cross entropy over predictions, or squared errors where there is one class.

    Args:
        logits: [N, C]; C = 1 means regression.
        labels: int64 [N], or float [N] for regression.

    Returns:
        A float32 scalar; 0 without predictions.
    """
    if logits.shape[-1] == 1:
        return F.mse_loss(logits.squeeze(-1).float(), labels.float(), reduction="sum")
    return F.cross_entropy(logits.float(), labels, reduction="sum")


def logits_loss_sum(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Sums the divergence from a teacher's predictions (Hinton et al. 2015, section 2).

    KL(teacher ‖ student) of softmax(logits / T), times T², which keeps its gradients as large as
    those of labels; squared errors where there is one class.

    Args:
        logits: the student's, [N, C].
        teacher: the teacher's, [N, C]; they get no gradient.
        temperature: T, above 0.

    Returns:
        A float32 scalar; 0 without predictions.
    """
    student, target = logits.float(), teacher.detach().float()
    if logits.shape[-1] == 1:
        return F.mse_loss(student, target, reduction="sum")
    divergence = F.kl_div(
        torch.log_softmax(student / temperature, -1),
        torch.log_softmax(target / temperature, -1),
        reduction="sum",
        log_target=True,
    )
    return divergence * temperature**2

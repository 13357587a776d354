"""A distillation step as the published implementation does it, for benchmarks to compare with.

Eager operators on padded batches; the teacher runs whole, and the relations of all its layers are
made; experts are a loop that gathers and scatters each one's tokens; the loss keeps every [S, S]
relation; half precision is autocast with a scaled loss, weights stay float32.

Shapes: B samples, S positions, H hidden size, R relation heads.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertConfig, BertModel

_SMALL = 1e-7  # added to probabilities
_BALANCE = 0.01
_NOISE = _DROPOUT = 0.1


class LoopedExperts(nn.Module):
    """A block's feed-forward experts, in the place of BERT's intermediate map."""

    def __init__(self, hidden: int, experts: int) -> None:
        super().__init__()
        self.router = nn.Linear(hidden, experts)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(hidden, 4 * hidden), nn.GELU(), nn.Linear(4 * hidden, hidden))
            for _ in range(experts)
        )
        self.balance = torch.zeros(())

    def forward(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of the chosen experts, and their probabilities [B, S, 1]."""
        rows = hidden.flatten(0, -2)
        logits = self.router(rows)
        logits = logits + torch.empty_like(logits).uniform_(1 - _NOISE, 1 + _NOISE)
        probabilities = logits.softmax(-1)
        best, chosen = probabilities.max(-1)
        output = rows.new_zeros(rows.shape, dtype=logits.dtype)
        for number, expert in enumerate(self.experts):
            own = (chosen == number).nonzero().squeeze(-1)
            output[own] = expert(rows[own]).to(output.dtype)
        shares = torch.bincount(chosen, minlength=len(self.experts)) / len(rows)
        self.balance = len(self.experts) * (probabilities.mean(0) * shares).sum()
        return output.view(hidden.shape), best.view(*hidden.shape[:-1], 1)


class _ScaledOutput(nn.Module):
    """In the place of BERT's output map: dropout, probability, residual, LayerNorm."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden, eps=1e-12)

    def forward(self, given: tuple[Tensor, Tensor], residual: Tensor) -> Tensor:
        rows, probability = given
        return self.norm(F.dropout(rows, _DROPOUT, self.training) * probability + residual)


class PublishedStudent(nn.Module):
    """BERT with feed-forward experts, and three maps behind its last layer."""

    def __init__(self, layers: int, hidden: int, heads: int, experts: int, vocabulary: int) -> None:
        super().__init__()
        config = BertConfig(
            vocab_size=vocabulary,
            num_hidden_layers=layers,
            hidden_size=hidden,
            num_attention_heads=heads,
            intermediate_size=4 * hidden,
            attn_implementation="eager",
        )
        self.bert = BertModel(config, add_pooling_layer=False)
        for layer in self.bert.encoder.layer:
            layer.intermediate = LoopedExperts(hidden, experts)
            layer.output = _ScaledOutput(hidden)
        self.maps = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(3))

    def forward(self, **inputs: Tensor) -> list[Tensor]:
        """Queries, keys and values, each [B, S, H]."""
        last = self.bert(**inputs).last_hidden_state
        return [one(last) for one in self.maps]

    def balance(self) -> Tensor:
        """The mean over blocks."""
        blocks = [layer.intermediate.balance for layer in self.bert.encoder.layer]
        return torch.stack(blocks).mean()


def relations(signal: Tensor, heads: int) -> Tensor:
    """[B, R, S, S], probabilities."""
    rows = signal.unflatten(-1, (heads, -1)).transpose(1, 2)
    return (rows @ rows.transpose(-1, -2) / rows.shape[-1] ** 0.5).softmax(-1)


def hooked_teacher(folder: str, device: torch.device) -> tuple[BertModel, list[Tensor]]:
    """A whole teacher, and the list into which its layers' projections go at each pass."""
    teacher = BertModel.from_pretrained(
        folder, add_pooling_layer=False, attn_implementation="eager"
    )
    projected: list[Tensor] = []
    for layer in teacher.encoder.layer:
        for name in ("query", "key", "value"):
            projection = layer.attention.self.get_submodule(name)
            projection.register_forward_hook(lambda module, args, out: projected.append(out))
    return teacher.eval().to(device), projected


def published_step(
    folder: str,
    student: PublishedStudent,
    inputs: dict[str, Tensor],
    heads: int,
    device: torch.device,
    dtype: torch.dtype,
) -> Callable[[], Tensor]:
    """A training step on one batch; returns its loss, on the device.

    Args:
        folder: the teacher's.
        student: on the device, in float32.
        inputs: on the device, padded.
        heads: R.
        device: of all.
        dtype: float32, or what autocast computes in.
    """
    teacher, projected = hooked_teacher(folder, device)
    student.train()
    optimizer = torch.optim.AdamW(student.parameters(), lr=3e-4, eps=1e-6)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    autocast: dict[str, Any] = {"dtype": dtype, "enabled": dtype != torch.float32}

    def step() -> Tensor:
        projected.clear()
        with torch.autocast(device.type, **autocast):
            with torch.no_grad():
                teacher(**inputs)
                everywhere = [relations(signal, heads) for signal in projected]
            loss = torch.zeros((), device=device)
            for own, target in zip(student(**inputs), everywhere[-3:], strict=True):
                dropped = F.dropout(relations(own, heads), _DROPOUT)
                divergence = target * ((target + _SMALL).log() - (dropped + _SMALL).log())
                loss = loss + divergence.sum(-1, dtype=torch.float32).mean() / 3
            loss = loss + _BALANCE * student.balance()
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        return loss.detach()

    return step

"""Models as ONNX: one file for any batch and length, checked against PyTorch by onnxruntime.

A traced graph has no grouped product, so experts get another form for it (:func:`traceable`): each
takes its own rows (NonZero, Gather, Gemm). A token still meets one expert, and a student's padding
none.

The graph is made by tracing and not by ``torch.export``: how many rows an expert has is decided by
the data, and PyTorch 2.13's exporter behind ``torch.export`` cannot write such sizes down.

Shapes: B samples, S positions, T packed tokens, C classes, H hidden size, E experts.
"""

import copy
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError
from ..models.elastic import SlicedLayerNorm, SlicedLinear
from ..models.encoder import Layer
from ..models.experts import ExpertLinear, Plan
from ..models.pretrained import longest_sequence

OPSET = 17
TOLERANCE = 1e-4  # absolute, of float32 outputs

_TRACED_LENGTHS = (9, 5, 7)  # some padding, or tracing would leave packing out
# One token, one sample, ragged batches, a batch without padding (the second of each length).
_CHECKED_SHAPES = ((1, 1), (1, 12), (3, 17), (8, 33), (4, 64), (2, 128), (32, 16))
_SEED = 20230711


@dataclass(frozen=True)
class OnnxExport:
    """An ONNX file, and how far onnxruntime's outputs are from PyTorch's.

    Attributes:
        inputs: names in order, each int64 [B, S].
        output: ``last_hidden_state`` [B, S, H], or ``logits`` [B, C] or [B, S, C].
        opset: of the file.
        largest_difference: absolute, over all checked batches' positions that are not padding.
        checked_batches: how many.
    """

    inputs: tuple[str, ...]
    output: str
    opset: int
    largest_difference: float
    checked_batches: int


def write_onnx(model: nn.Module, target: Path) -> OnnxExport:
    """Writes a model as one ONNX file and holds onnxruntime's outputs against PyTorch's.

    Args:
        model: an encoder, transformers' or a student, or one with a classification head; float32
            on the CPU. It stays as it is.
        target: the file.

    Raises:
        UserError: the outputs differ by more than `TOLERANCE`; the file is then removed.
    """
    reference = _FirstOutput(model).eval()
    config: Any = model.config
    names = ["input_ids", "attention_mask"]
    if getattr(config, "family", config.model_type) != "roberta":
        names.append("token_type_ids")
    generator = torch.Generator().manual_seed(_SEED)
    inputs = _random_batch(config, _TRACED_LENGTHS, generator)[: len(names)]
    with torch.no_grad():
        is_per_token = reference(*inputs).dim() == 3
        axes = {name: {0: "batch", 1: "length"} for name in names}
        axes[reference.output] = {0: "batch", 1: "length"} if is_per_token else {0: "batch"}
        with warnings.catch_warnings():
            # Of the tracer's age, and of numbers that it takes for constants: checked below.
            warnings.simplefilter("ignore")
            torch.onnx.export(
                _FirstOutput(traceable(model)).eval(),
                inputs,
                str(target),
                dynamo=False,
                opset_version=OPSET,
                input_names=names,
                output_names=[reference.output],
                dynamic_axes=axes,
            )
        difference = _largest_difference(reference, names, target, generator)
    if not difference <= TOLERANCE:
        target.unlink()
        raise UserError(
            f"{target}: onnxruntime's {reference.output} is {difference:.2e} from PyTorch's, more "
            f"than {TOLERANCE:g}, and was not kept; export without --onnx"
        )
    return OnnxExport(tuple(names), reference.output, OPSET, difference, len(_CHECKED_SHAPES))


class _FirstOutput(nn.Module):
    """A model with positional inputs and its one output: logits, or the last hidden states."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        has_head = "For" in type(model).__name__
        self.output = "logits" if has_head else "last_hidden_state"

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> Tensor:
        segments = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        outputs = self.model(input_ids=input_ids, attention_mask=attention_mask, **segments)
        return getattr(outputs, self.output)


def traceable(model: nn.Module) -> nn.Module:
    """Copies a model for tracing: experts take their own rows in turn, and all else is fixed.

    Slices of a sliceable student's weights would be sizes that the graph computes.
    """
    copied = copy.deepcopy(model)
    for module in list(copied.modules()):
        if isinstance(module, Layer):
            module.dispatcher = _IdentityDispatcher()
        for name, child in list(module.named_children()):
            if isinstance(child, ExpertLinear):
                setattr(module, name, _SelectingLinear(child))
            elif isinstance(child, SlicedLinear | SlicedLayerNorm):
                setattr(module, name, _Unsliced(child))
    return copied


class _IdentityDispatcher:
    """Leaves tokens in their order; instead of products, maps get each token's expert."""

    def plan(self, expert: Tensor, num_experts: int) -> Plan:
        return _IdentityPlan(expert)


class _IdentityPlan(Plan):
    def __init__(self, expert: Tensor) -> None:
        self.products = expert

    def to_experts(self, tokens: Tensor) -> Tensor:
        return tokens

    def to_tokens(self, rows: Tensor) -> Tensor:
        return rows


class _SelectingLinear(nn.Module):
    """Stacked linear maps, each of the rows that chose it: [T, in] and experts [T] to [T, out]."""

    def __init__(self, stacked: ExpertLinear) -> None:
        super().__init__()
        self.weights = nn.ParameterList(stacked.weight.detach().unbind())
        self.biases = nn.ParameterList(stacked.bias.detach().unbind())

    def forward(self, rows: Tensor, expert: Tensor) -> Tensor:
        chosen, outputs = [], []
        for index, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            chosen.append((expert == index).nonzero().squeeze(-1))
            outputs.append(F.linear(rows.index_select(0, chosen[-1]), weight, bias))
        return torch.cat(outputs).index_select(0, torch.argsort(torch.cat(chosen)))


class _Unsliced(nn.Module):
    """A sliceable map or LayerNorm as a plain one, where its model has one sub-model only."""

    def __init__(self, sliceable: SlicedLinear | SlicedLayerNorm) -> None:
        super().__init__()
        if isinstance(sliceable, nn.Linear):
            self.plain: nn.Module = nn.Linear(sliceable.in_features, sliceable.out_features)
        else:
            self.plain = nn.LayerNorm(sliceable.normalized_shape, sliceable.eps)
        self.plain.load_state_dict(sliceable.state_dict())

    def forward(self, values: Tensor, out_features: int | None = None) -> Tensor:
        return self.plain(values)


def _random_batch(
    config: Any, lengths: Sequence[int], generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Draws ids, mask and segments, each int64 [B, S], of samples of these lengths."""
    shape = (len(lengths), max(lengths))
    padding = config.pad_token_id or 0
    ids = torch.randint(config.vocab_size, shape, generator=generator)
    ids = torch.where(ids == padding, (padding + 1) % config.vocab_size, ids)
    mask = torch.arange(shape[1]) < torch.tensor(lengths)[:, None]
    segments = torch.randint(config.type_vocab_size, shape, generator=generator)
    return torch.where(mask, ids, padding), mask.long(), torch.where(mask, segments, 0)


def open_session(path: Path) -> Any:
    """Opens an ONNX file in onnxruntime, on as many threads of the CPU as PyTorch has."""
    import onnxruntime  # type: ignore[import-untyped]

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def checked_batches(
    config: Any, generator: torch.Generator | None = None
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Draws the batches that outputs are compared on: ids, mask, segments, each int64 [B, S]."""
    generator = generator or torch.Generator().manual_seed(_SEED)
    for index, (batch, max_length) in enumerate(_CHECKED_SHAPES):
        length = min(max_length, longest_sequence(config))
        lengths = torch.randint(1, length + 1, (batch,), generator=generator)
        lengths[0] = length
        if index % 2:
            lengths[:] = length
        yield _random_batch(config, lengths.tolist(), generator)


def _largest_difference(
    model: _FirstOutput, names: Sequence[str], target: Path, generator: torch.Generator
) -> float:
    session, largest = open_session(target), 0.0
    for inputs in checked_batches(model.model.config, generator):
        expected = model(*inputs[: len(names)])
        feed = {name: value.numpy() for name, value in zip(names, inputs, strict=False)}
        actual = torch.from_numpy(session.run([model.output], feed)[0])
        gaps = (actual - expected).abs()
        gaps = gaps[inputs[1].bool()] if expected.dim() == 3 else gaps
        if not torch.isfinite(gaps).all():
            return float("nan")
        largest = max(largest, float(gaps.max()))
    return largest

"""int8 ONNX files: weights of products in 8 bits, a scale a row; inputs quantised as they come.

Routers stay in float32: an expert chosen by a rounded logit is another function, not a rounded one.
Embeddings become int8 too, which is most of a small student's file.
"""

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from .onnx_export import OnnxExport, checked_batches, open_session

_ROUTERS = ("attn_gate", "ffn_gate")


@dataclass(frozen=True)
class QuantizedOnnx:
    """An int8 file, and how it compares with the float32 one.

    Attributes:
        bytes: of the file.
        float_bytes: of the float32 one.
        cosine: mean cosine similarity of the outputs' rows on random batches with padding.
        largest_difference: absolute, over the same.
    """

    bytes: int
    float_bytes: int
    cosine: float
    largest_difference: float


def write_quantized(
    source: Path, target: Path, model: nn.Module, export: OnnxExport
) -> QuantizedOnnx:
    """Writes the int8 form of an ONNX file, and compares their outputs.

    Args:
        source: that :func:`.onnx_export.write_onnx` wrote.
        target: the file.
        model: that ``source`` was made of.
        export: what that returned.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic  # type: ignore[import-untyped]

    nodes = [node.name for node in onnx.load(str(source)).graph.node]
    routers = [name for name in nodes if any(f"/{router}/" in name for router in _ROUTERS)]
    with _quiet_onnxruntime():
        quantize_dynamic(
            str(source),
            str(target),
            per_channel=True,
            weight_type=QuantType.QInt8,
            # A Gemm is made a MatMul first, and an Add.
            nodes_to_exclude=[*routers, *(f"{name}_MatMul" for name in routers)],
        )
    whole, small = open_session(source), open_session(target)
    cosines, largest = [], 0.0
    for inputs in checked_batches(model.config):
        feed = {name: value.numpy() for name, value in zip(export.inputs, inputs, strict=False)}
        wanted, given = (torch.from_numpy(each.run(None, feed)[0]) for each in (whole, small))
        if wanted.dim() == 3:
            wanted, given = (rows[inputs[1].bool()] for rows in (wanted, given))
        cosines.append(torch.cosine_similarity(wanted, given, dim=-1))
        largest = max(largest, float((wanted - given).abs().max()))
    cosine = float(torch.cat(cosines).mean())
    return QuantizedOnnx(target.stat().st_size, source.stat().st_size, cosine, largest)


class OnnxModel(nn.Module):
    """An ONNX file that is called like the model that it was made of.

    Args:
        path: the file.
        config: of the model.
        export: what writing it returned.
    """

    def __init__(self, path: Path, config: Any, export: OnnxExport) -> None:
        super().__init__()
        self.config = config
        self._session = open_session(path)
        self._export = export

    def forward(self, **inputs: Tensor) -> Any:
        """Runs a batch; returns an object with the one output by its name."""
        names = [name for name in self._export.inputs if inputs.get(name) is not None]
        feed = {name: inputs[name].long().cpu().numpy() for name in names}
        (output,) = self._session.run([self._export.output], feed)
        return SimpleNamespace(**{self._export.output: torch.from_numpy(output)})


@contextlib.contextmanager
def _quiet_onnxruntime() -> Iterator[None]:
    """Silences its root logger's warnings of shapes that the data decides."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(disabled)

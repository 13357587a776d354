"""The places in a teacher that students are fitted to, and the weights that they take over.

Shapes: B samples, S positions, n tokens of a batch, H the teacher's width, I its neurons.
"""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..data.batches import MicroBatch
from ..encoder_families import ENCODER_FAMILIES, EncoderFamily
from .least_squares import Affine
from .pretrained import size_of
from .taps import Tap, listening, rows_of


class TeacherPlaces:
    """The places and weights of an encoder that students take over.

    Args:
        model: of a family of `encoder_families`.

    Attributes:
        family: its record.
        heads: of its attention.
        score_divisor: by whose root it divides attention scores beside the size of a head.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self.family: EncoderFamily = ENCODER_FAMILIES[model.config.model_type]
        self.heads: int = size_of(model.config, "num_attention_heads")
        # DeBERTa's scores are sums of a term of contents and one of each kind of positions.
        positions = getattr(model.config, "pos_att_type", None) or ()
        self.score_divisor = 1.0 + len(set(positions) & {"c2p", "p2c"})
        shared = self.family.shared_layer
        if shared is not None:
            count: int = size_of(model.config, "num_hidden_layers")
            self._layers: Sequence[nn.Module] = [model.get_submodule(shared)] * count
        else:
            layers = model.get_submodule(self.family.layers)
            assert isinstance(layers, nn.ModuleList), self.family.layers
            self._layers = list(layers)

    def _call(self, layer: int) -> int:
        return layer - 1 if self.family.shared_layer is not None else 0

    def _inside(self, layer: int, path: str) -> nn.Module:
        return self._layers[layer - 1].get_submodule(path)

    def states(self, layer: int) -> Tap:
        """The states behind a layer; 0 is what the first one reads."""
        if layer == 0:
            return Tap(self._layers[0], True, 0)
        return Tap(self._layers[layer - 1], False, self._call(layer))

    def last_states(self, layers: int) -> Tap:
        """What a model that ends behind a layer gives: behind its norm, where it has one."""
        if self.family.norms is None:
            return self.states(layers)
        return Tap(self._model.get_submodule(self.family.norms[0]), False)

    def maps_input(self, layer: int) -> Tap:
        """What a layer's maps to queries, keys and values read."""
        return Tap(self._inside(layer, self.family.maps[0]), True, self._call(layer))

    def neurons_input(self, layer: int) -> Tap | None:
        """What a layer's neurons read; None where the family does not say."""
        if self.family.feedforward is None:
            return None
        return Tap(self._inside(layer, self.family.feedforward[0]), True, self._call(layer))

    def middle(self, layer: int) -> Tap | None:
        """The states between a layer's blocks."""
        norm = self.family.feedforward_norm
        if norm is None:
            return self.neurons_input(layer) if self.family.norms is None else None
        return Tap(self._inside(layer, norm), True, self._call(layer))

    def maps(self, layer: int) -> tuple[Affine, Affine, Affine]:
        """A layer's maps to queries, keys and values, H → H each."""
        linears = [_affine_of(self._inside(layer, name)) for name in self.family.maps]
        if len(linears) == 3:
            return linears[0], linears[1], linears[2]
        (joined,) = linears
        weights, biases = joined.weight.chunk(3, 1), joined.bias.chunk(3)
        query, key, value = map(Affine, weights, biases)
        return query, key, value

    def neurons(self, layer: int) -> tuple[Affine, Tensor]:
        """A layer's first feed-forward map, H → I, and the size of what each neuron adds, [I]."""
        assert self.family.feedforward is not None
        first, second = (self._inside(layer, name) for name in self.family.feedforward)
        return _affine_of(first), _affine_of(second).weight.norm(dim=1)

    def run(self, taps: Collection[Tap], batch: MicroBatch) -> dict[Tap, Tensor]:
        """Runs a batch; returns the rows [n, …] that passed the taps."""
        heard: dict[Tap, Tensor] = {}
        inputs = batch.inputs() | {"attention_mask": batch.attention_mask.long()}
        if not self.family.reads_segments:
            del inputs["token_type_ids"]
        with listening(taps, heard):
            self._model(**inputs)
        return {tap: rows_of(values, batch.attention_mask) for tap, values in heard.items()}

    def tables(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Word, position and segment embeddings, of one width; None where there are none such."""
        words = self._model.get_submodule(self.family.words)
        assert isinstance(words, nn.Embedding), self.family.words
        holder = self._model.get_submodule(self.family.words.rpartition(".")[0])
        others: list[Tensor | None] = []
        for name in ("position_embeddings", "token_type_embeddings"):
            table = getattr(holder, name, None)
            assert table is None or isinstance(table, nn.Embedding), name
            fits = table is not None and table.embedding_dim == words.embedding_dim
            others.append(table.weight.float() if table is not None and fits else None)
        return words.weight.float(), others[0], others[1]


def _affine_of(module: nn.Module) -> Affine:
    weight, bias = module.weight, getattr(module, "bias", None)
    assert isinstance(weight, Tensor)
    zeros = weight.new_zeros(len(weight), dtype=torch.float32)
    return Affine(weight.float().T, zeros if bias is None else bias.float())

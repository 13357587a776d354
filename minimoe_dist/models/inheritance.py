"""Starts students from their teacher's weights: narrowed, shortened and fitted to its states.

A student of fewer layers and units begins where its teacher ends, instead of at random weights:

* its hidden space is spanned by the principal components of the teacher's hidden states on text,
* its embeddings are the teacher's in that space,
* a student's layer stands for a run of the teacher's: it has heads and neurons of the first of
  these, and the second map of each block is what brings it nearest, by ridge regression, to the
  teacher's states: behind the attention of that first layer, and behind the last of the run,
* a feed-forward expert has the neurons that matter most to its own tokens, and a second map fitted
  on them; its router's tokens are clusters of equal size. Experts of attention are copies with
  noise, behind routers that stay random,
* the maps that the relation loss reads are, relation head by relation head, the principal
  components of the teacher's.

Each part is fitted to what the parts before it give, so that errors do not add up. Nothing here is
trained. Weight inheritance by parts is known of pruning (Samragh et al., "Weight subcloning", 2023;
Ashkboos et al., "SliceGPT", 2024); least squares take the place of their exact rotations, which
LayerNorm behind blocks does not have.

Shapes: N tokens of the sample, H the teacher's width, W the student's, E experts, A attention
heads, D a head's size.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from .encoder import Layer
from .errors import UserError
from .experts import ExpertLinear
from .least_squares import (
    Affine,
    Moments,
    balanced_router,
    explained,
    fit_norm,
    least_squares,
    narrow,
    narrow_scores,
    over,
    ridge,
    second_moment_factor,
    side_by_side,
    standardised,
    way_back,
    with_ones,
)
from .moebert import MiniMoeForRelations
from .teacher_places import Tap, TeacherPlaces, TextBatch, listening, rows_of

_LEAST_FACTOR = 0.05
_COPY_NOISE = 0.01
_CHUNK = 4096
_NOTHING_TO_LEARN = "its states are not finite, or the same for all tokens"


@dataclass(frozen=True)
class LayerFit:
    """How near a student's layer begins to its teacher's states.

    Attributes:
        first, last: the teacher's layers that it stands for, from 1.
        explained: share of the variance of the states behind ``last`` that it explains.
    """

    first: int
    last: int
    explained: float


@dataclass(frozen=True)
class Inheritance:
    """What a student took over.

    Attributes:
        tokens: N.
        kept: share of the variance of the teacher's states that the student's space holds.
        layers: one a layer.
    """

    tokens: int
    kept: float
    layers: Sequence[LayerFit]


def runs_of_layers(student_layers: int, relation_layer: int, has_maps: bool) -> list[range]:
    """Returns the teacher's layers, from 1, that each of a student's layers stands for.

    What the relation layer reads must come from the student's layers: from all of them where the
    relation loss has maps of its own behind them, else from all but the last, which is then the
    relation layer itself. A run is empty where the student has more layers than the teacher.
    """
    own = student_layers if has_maps else student_layers - 1
    ends = [round((index + 1) * (relation_layer - 1) / own) for index in range(own)]
    if not has_maps:
        ends.append(relation_layer)
    starts = [1, *(end + 1 for end in ends[:-1])]
    return [range(first, last + 1) for first, last in zip(starts, ends, strict=True)]


@torch.no_grad()
def inherit(
    student: MiniMoeForRelations,
    teacher: PreTrainedModel,
    batches: Sequence[TextBatch],
    relation_layer: int,
    seed: int = 0,
) -> Inheritance:
    """Gives a fresh student weights made of its teacher's, in place.

    Args:
        student: float32, on the device of ``teacher``; its random weights stay where nothing takes
            their place, such as attention's routers.
        teacher: a whole encoder of a family of `encoder_families`, of layers up to
            ``relation_layer`` at least, in any floating-point type.
        batches: the sample, on the device.
        relation_layer: the teacher's layer whose maps are the signals, from 1.
        seed: of what is drawn: the rotation of the student's space, and where clusters begin.

    Raises:
        UserError: nothing can be learnt from the teacher's states, or least squares fail on them.
    """
    was_training, routes_padding = student.training, student.config.route_padding
    student.eval()
    student.config.route_padding = False  # rows of both models are then the same tokens
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return _Fit(student, TeacherPlaces(teacher), batches, relation_layer).run()
    except torch.linalg.LinAlgError as error:
        raise UserError(f"least squares fail on its states ({error})") from error
    finally:
        student.config.route_padding = routes_padding
        student.train(was_training)


@dataclass
class _Seen:
    """The teacher's rows in the student's space, and the way back to its own.

    Attributes:
        rows: [N, W].
        back: W → H, of ``rows`` what is nearest to the teacher's.
    """

    back: Affine
    pieces: list[Tensor] = field(default_factory=list)

    @property
    def rows(self) -> Tensor:
        if len(self.pieces) > 1:
            self.pieces = [torch.cat(self.pieces)]
        return self.pieces[0]


class _Fit:
    """One student's start."""

    def __init__(
        self,
        student: MiniMoeForRelations,
        teacher: TeacherPlaces,
        batches: Sequence[TextBatch],
        relation_layer: int,
    ) -> None:
        self._student = student
        self._teacher = teacher
        self._relation_layer = relation_layer
        self._batches = batches
        self._width: int = student.config.hidden_size
        self._has_maps = student.relation is not None
        self._runs = runs_of_layers(
            student.config.num_hidden_layers, self._relation_layer, self._has_maps
        )
        self._layers: list[Layer] = student.bert.encoder.layers()
        self._kept = 0.0
        self._seen: dict[str, _Seen] = {}

    def run(self) -> Inheritance:
        """Fits part after part, from the embeddings to the relation loss's maps."""
        self._look_at_teacher()
        self._embed()
        fits = []
        for index, run in enumerate(self._runs):
            share = self._fit_layer(index)
            fits.append(LayerFit(run.start, run.stop - 1, share))
        if self._has_maps:
            self._fit_relation_maps(self._student.relation, self._states())
        tokens = len(self._seen["states 0"].rows)
        return Inheritance(tokens, self._kept, fits)

    def _first_layer(self, index: int) -> int:
        """The teacher's layer whose heads and neurons a student's layer takes over."""
        run = self._runs[index]
        return min(max(1, run.start), self._relation_layer)

    def _taps(self) -> dict[str, Tap]:
        """The places of the teacher that anything is fitted to."""
        teacher = self._teacher
        taps: dict[str, Tap | None] = {
            "states 0": teacher.states(0),
            "relation": teacher.maps_input(self._relation_layer),
        }
        for index, run in enumerate(self._runs):
            first = self._first_layer(index)
            taps[f"maps {index}"] = teacher.maps_input(first)
            taps[f"middle {index}"] = teacher.middle(first)
            taps[f"neurons {index}"] = teacher.neurons_input(first)
            taps[f"end {index}"] = teacher.states(run.stop - 1)
        return {name: tap for name, tap in taps.items() if tap is not None}

    def _look_at_teacher(self) -> None:
        """Finds the student's space, then the teacher's rows in it."""
        teacher, taps = self._teacher, self._taps()
        states = {f"layer {layer}": teacher.states(layer) for layer in range(self._relation_layer)}
        moments = {name: Moments() for name in (*states, *taps)}
        # A quarter of the text tells directions; fits need more of it.
        for batch in self._batches[: -(-len(self._batches) // 4)]:
            for name, rows in teacher.run({**states, **taps}, batch).items():
                moments[name].add(rows)
        covariances = [moments[name].covariance for name in states]
        if not all(each.isfinite().all() and each.trace() > 0 for each in covariances):
            raise UserError(_NOTHING_TO_LEARN)
        mixture = torch.stack([each / each.trace() for each in covariances]).sum(0)
        space = self._space(mixture)
        self._kept = float(
            sum((space.T @ each @ space).trace() / each.trace() for each in covariances)
            / len(covariances)
        )
        for name in taps:
            self._seen[name] = _Seen(way_back(moments[name], space))
        narrow = space.float()
        for batch in self._batches:
            for name, rows in teacher.run(taps, batch).items():
                if not rows.isfinite().all():
                    raise UserError(_NOTHING_TO_LEARN)
                self._seen[name].pieces.append(rows @ narrow)

    def _space(self, covariance: Tensor) -> Tensor:
        """Returns H → W, float64: principal components, spread over units by a rotation.

        Rows of the student's space have mean 0, as what LayerNorm gives before it is scaled.
        """
        width = self._width
        components = min(width - 1, len(covariance))
        directions = torch.linalg.eigh(covariance)[1].flip(1)[:, :components]
        basis = torch.randn(width, width, dtype=torch.float64)
        basis[:, 0] = 1.0
        rotation = torch.linalg.qr(basis)[0][:, 1 : components + 1].T
        return directions @ rotation.to(directions)

    def _hear(self, module: nn.Module, is_input: bool) -> Tensor:
        """Runs the sample through the student; returns the rows [N, …] at one place."""
        heard: dict[str, Tensor] = {}
        found = []
        with listening({"here": Tap(module, is_input)}, heard) as forget:
            for batch in self._batches:
                forget()
                self._student.bert(batch.ids, batch.mask, batch.segments)
                found.append(rows_of(heard["here"], batch.mask))
        return torch.cat(found)

    def _states(self) -> Tensor:
        """What stands on the student reads: the states behind its last layer."""
        encoder = self._student.bert.encoder
        states = self._hear(self._layers[-1], is_input=False)
        return encoder.ln(states) if self._student.config.normalizes_input else states

    def _embed(self) -> None:
        """Puts the teacher's embeddings into the student's space."""
        embeddings, teacher = self._student.bert.embeddings, self._teacher
        positions = self._positions()
        read = torch.cat(
            [
                teacher.embedded(batch, places)
                for batch, places in zip(self._batches, positions, strict=True)
            ]
        )
        target = self._seen["states 0"].rows
        norm = getattr(embeddings, "LayerNorm", None)
        fit = ridge(read, target if norm is None else standardised(target))
        words, places, segments = teacher.tables()
        if not all(table is None or table.isfinite().all() for table in (words, places, segments)):
            raise UserError("its embeddings are not all finite")
        if norm is not None:
            # The norm takes any size away; a masked-LM head that is tied to the words needs theirs.
            scale = words.std() / (words @ fit.weight).std()
            fit = Affine(fit.weight * scale, fit.bias * scale)
        embeddings.word_embeddings.weight[: len(words)] = (words @ fit.weight)[
            : len(embeddings.word_embeddings.weight)
        ]
        for table, mine in (
            (places, embeddings.position_embeddings),
            (segments, embeddings.token_type_embeddings),
        ):
            if table is not None:
                rows = min(len(table), len(mine.weight))
                mine.weight[:rows] = table[:rows] @ fit.weight
                mine.weight[rows:] = 0.0
        if segments is None:
            embeddings.token_type_embeddings.weight.zero_()
        embeddings.token_type_embeddings.weight += fit.bias
        if norm is not None:
            fit_norm(norm, self._hear(norm, is_input=True), target, keeps_variance=False)

    def _positions(self) -> list[Tensor]:
        """The sample's positions, as students count them, [n] a batch."""
        first = self._student.bert.embeddings.first_position
        found = []
        for batch in self._batches:
            counted = batch.mask.long().cumsum(1) - 1
            found.append((counted + (0 if first is None else first + 1))[batch.mask])
        return found

    def _fit_layer(self, index: int) -> float:
        """Fits a layer to the states that its teacher's run ends with; returns how near it is."""
        layer, is_last = self._layers[index], index == len(self._layers) - 1
        normalizes_input = self._student.config.normalizes_input
        before = self._hear(layer, is_input=True)
        read = layer.attention.ln(before) if normalizes_input else before
        if is_last and not self._has_maps:
            self._fit_relation_maps(layer.attention.self, read)
        else:
            self._fit_heads(index, read)
        end = self._seen[f"end {index}"].rows
        if is_last and not normalizes_input:
            # Nothing else reads these, and heads of tasks are tuned for states of unit variance: a
            # teacher's own may be much smaller. (A norm behind the layers would do that itself.)
            end = end / end.std(0).mean()
        middle = self._seen.get(f"middle {index}")
        attended = self._fit_block(
            layer.attention.output,
            before,
            [self._attention_part(layer, read)],
            end if middle is None else middle.rows,
        )
        tokens = layer.ln(attended) if normalizes_input else attended
        parts = self._fit_neurons(index, tokens)
        behind = self._fit_block(layer.output, attended, parts, end, keeps_variance=is_last)
        return explained(behind, end)

    def _fit_heads(self, index: int, read: Tensor) -> None:
        """Gives a layer's attention the teacher's heads whose values vary most.

        Scores of a narrower head are the nearest of its size: the leading singular values of the
        product of both maps, weighed by what they read, [N, W].
        """
        holder = self._layers[index].attention.self
        seen = self._seen[f"maps {index}"]
        to_teacher = ridge(read, seen.rows).then(seen.back)
        query, key, value = (
            to_teacher.then(each) for each in self._teacher.maps(self._first_layer(index))
        )
        heads = self._teacher.heads
        size = len(query.bias) // heads
        own_heads: int = self._student.config.num_attention_heads
        own_size = self._width // own_heads
        values = value(read)
        energy = values.var(0).view(heads, size).sum(1)
        ranked = energy.argsort(descending=True)[:own_heads].sort().values.tolist()
        factor = second_moment_factor(with_ones(read.double()))
        found: dict[str, list[Affine]] = {"query": [], "key": [], "value": []}
        for place in range(own_heads):
            head = ranked[place % len(ranked)]
            columns = torch.arange(head * size, (head + 1) * size, device=read.device)
            pair = (query.of(columns), key.of(columns))
            maps = [
                *narrow_scores(pair, factor, own_size, self._teacher.score_divisor),
                narrow(value.of(columns), read, own_size, centred=True),
            ]
            if place >= len(ranked):
                # Of a head that was taken before; alike they would stay.
                maps = [_noisy(each) for each in maps]
            for pieces, piece in zip(found.values(), maps, strict=True):
                pieces.append(piece)
        for name, pieces in found.items():
            whole = side_by_side(pieces)
            if name != "key":
                # Of a head's elements beyond its teacher's, both sides of a product would be zero,
                # and neither would ever learn.
                whole = _noisy_beyond(whole, size, own_size)
            _Map(getattr(holder, name)).write(whole)

    def _fit_relation_maps(self, holder: Any, read: Tensor) -> None:
        """Gives maps to queries, keys and values the teacher's relations, of what is read [N, W].

        The Gram matrix of a relation head's vectors is the loss's whole input; of vectors of fewer
        elements it is nearest with their principal components.
        """
        seen = self._seen["relation"]
        to_teacher = ridge(read, seen.rows).then(seen.back)
        heads: int = self._student.config.num_relation_heads
        own_size = self._width // heads
        maps = self._teacher.maps(self._relation_layer)
        for linear, teachers in zip((holder.query, holder.key, holder.value), maps, strict=True):
            whole = to_teacher.then(teachers)
            size = len(whole.bias) // heads
            pieces = []
            for columns in torch.arange(heads * size, device=read.device).split(size):
                narrowed = narrow(whole.of(columns), read, own_size, centred=False)
                # Scores are divided by the root of the size.
                scale = (own_size / size) ** 0.25
                pieces.append(Affine(narrowed.weight * scale, narrowed.bias * scale))
            _Map(linear).write(_noisy_beyond(side_by_side(pieces), size, own_size))

    def _attention_part(self, layer: Layer, read: Tensor) -> "_Part":
        """What the second map of attention reads, [N, W], in a batch's own order."""
        dense = layer.attention.output.dense
        context = self._hear(dense, is_input=True)
        if not isinstance(dense, ExpertLinear):
            return _Part(_all(context), context, _Map(dense))
        # Experts are alike here, but their rows are sorted by them.
        expert, probability, _ = layer.attn_gate(read, None)
        counts = [int(batch.mask.sum()) for batch in self._batches]
        found = torch.empty_like(context)
        for mine, sorted_rows, chosen in zip(
            found.split(counts), context.split(counts), expert.split(counts), strict=True
        ):
            mine[torch.argsort(chosen, stable=True)] = sorted_rows
        return _Part(_all(found), found, _Map(dense), probability)

    def _fit_neurons(self, index: int, tokens: Tensor) -> list["_Part"]:
        """Gives the feed-forward block of a layer, which reads ``tokens`` [N, W], its neurons."""
        layer = self._layers[index]
        first, second = layer.intermediate.dense, layer.output.dense
        if not isinstance(first, ExpertLinear):
            everything = _all(tokens)
            read = self._set_neurons(index, tokens, everything, _Map(first))
            return [_Part(everything, read, _Map(second))]
        _Map(layer.ffn_gate).write(balanced_router(tokens, first.num_experts))
        expert, probability, _ = layer.ffn_gate(tokens, None)
        parts = []
        for number in range(first.num_experts):
            rows = expert == number
            if rows.any():  # else it stays as it was drawn
                read = self._set_neurons(index, tokens, rows, _Map(first, number))
                parts.append(_Part(rows, read, _Map(second, number), probability[rows]))
        return parts

    def _set_neurons(self, index: int, tokens: Tensor, rows: Tensor, own: "_Map") -> Tensor:
        """Gives a map of 4W neurons those of the teacher's that add most to some tokens.

        Args:
            index: of the layer.
            tokens: [N, W], what all of the block reads.
            rows: bool [N], the tokens of this map.
            own: the map.

        Returns:
            [n, 4W], what the second map reads of these tokens.
        """
        seen, mine, drawn = self._seen.get(f"neurons {index}"), tokens[rows], own.read()
        activation = self._layers[index].intermediate.activation
        if seen is None:
            # Of unit variance before the activation, which is linear near 0.
            own.write(Affine(drawn.weight / drawn(mine).std().clamp_min(1e-6), drawn.bias))
        else:
            neurons, sizes = self._teacher.neurons(self._first_layer(index))
            whole = ridge(tokens, seen.rows).then(seen.back).then(neurons)
            added = torch.zeros_like(whole.bias)
            for chunk in mine.split(_CHUNK):
                added += (activation(whole(chunk)) * sizes).square().sum(0)
            kept = min(len(drawn.bias), len(added))
            own.write(over(drawn, whole.of(added.topk(kept).indices.sort().values)))
        activated: Tensor = activation(own.read()(mine))
        return activated

    def _fit_block(
        self,
        output: Any,
        residual: Tensor,
        parts: Sequence["_Part"],
        target: Tensor,
        keeps_variance: bool = False,
    ) -> Tensor:
        """Fits a block's second map, and the LayerNorm behind it, to ``target`` [N, W].

        LayerNorm takes the size of its input away, so what the sum with the residual should be is
        known but for a factor, which is fitted too.

        Args:
            output: the second map's holder.
            residual: [N, W], what the block's output is added to.
            parts: what its maps read.
            target: of the states behind the block.
            keeps_variance: give the result the target's variance, where least squares would shrink
                what is explained in part.

        Returns:
            [N, W], the states behind the block.
        """
        norm = getattr(output, "LayerNorm", None)
        wanted = target if norm is None else standardised(target)
        solved = []
        crossed = squared = 0.0
        for part in parts:
            features, goals = part.features(), (wanted[part.rows], residual[part.rows])
            to_wanted, to_residual = least_squares(features, goals)
            solved.append((part, to_wanted, to_residual))
            left_of_wanted = goals[0] - features @ to_wanted
            left_of_residual = goals[1] - features @ to_residual
            crossed += float((left_of_wanted * left_of_residual).sum())
            squared += float(left_of_residual.square().sum())
        factor = 1.0
        if norm is not None:
            factor = max(crossed / max(squared, 1e-12), _LEAST_FACTOR)
        summed = residual.clone()
        for part, to_wanted, to_residual in solved:
            weights = to_wanted / factor - to_residual
            part.second.write(Affine(weights[:-1], weights[-1]))
            summed[part.rows] += part.features() @ weights
        if norm is None:
            return summed
        fit_norm(norm, summed, target, keeps_variance)
        normalised: Tensor = norm(summed)
        return normalised


@dataclass(frozen=True)
class _Map:
    """A linear map of a student.

    Attributes:
        linear: plain, or the maps of several experts.
        expert: whose it is; None of a plain one, and of all experts, which are then made alike.
    """

    linear: Any
    expert: int | None = None

    def read(self) -> Affine:
        """Returns the map, of one expert or a plain one; of all experts the first one's."""
        weight, bias = self.linear.weight, self.linear.bias
        if weight.dim() == 3:
            weight, bias = weight[self.expert or 0], bias[self.expert or 0]
        return Affine(weight.T, bias)

    def write(self, values: Affine) -> None:
        """Replaces the map; experts that are alike get noise, which lets them part."""
        weight, bias = self.linear.weight, self.linear.bias
        if self.expert is not None:
            weight, bias = weight[self.expert], bias[self.expert]
        weight.copy_(values.weight.T)
        bias.copy_(values.bias)
        if weight.dim() > values.weight.dim():
            weight += _noise_like(weight)


@dataclass(frozen=True)
class _Part:
    """Tokens of a block, and the second map that they go through.

    Attributes:
        rows: bool [N], which tokens they are.
        read: [n, in], what the map reads of them.
        second: the map.
        probability: of the tokens' experts, [n, 1]; None where the block has none.
    """

    rows: Tensor
    read: Tensor
    second: _Map
    probability: Tensor | None = None

    def features(self) -> Tensor:
        """What a linear map without bias makes the block's output of, [n, in + 1]."""
        features = with_ones(self.read)
        return features if self.probability is None else features * self.probability


def _noise_like(weight: Tensor) -> Tensor:
    return _COPY_NOISE * weight.std() * torch.randn(weight.shape).to(weight.device)


def _noisy(values: Affine) -> Affine:
    return Affine(values.weight + _noise_like(values.weight), values.bias)


def _noisy_beyond(values: Affine, size: int, own_size: int) -> Affine:
    """Returns a map of heads of ``own_size``, with noise for their elements beyond ``size``."""
    beyond = torch.arange(len(values.bias), device=values.bias.device) % own_size >= size
    return Affine(torch.where(beyond, _noise_like(values.weight), values.weight), values.bias)


def _all(rows: Tensor) -> Tensor:
    return torch.ones(len(rows), dtype=torch.bool, device=rows.device)

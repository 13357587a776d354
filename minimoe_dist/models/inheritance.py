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
  components of the teacher's,
* the map of last states, if they are learnt, is the ridge regression of the teacher's.

Each part is fitted to what the parts before it give, so that errors do not add up. Nothing here is
trained. Weight inheritance by parts is known of pruning (Samragh et al., "Weight subcloning", 2023;
Ashkboos et al., "SliceGPT", 2024); least squares take the place of their exact rotations, which
LayerNorm behind blocks does not have.

Shapes: N tokens of the sample, H the teacher's width, W the student's, E experts, A attention
heads, D a head's size.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..data.batches import MicroBatch
from ..objectives.last_states import normalised
from .block_fits import Part, StudentMap, balanced_router, fit_block, noisy, noisy_beyond
from .encoder import Layer
from .errors import UserError
from .experts import ExpertLinear
from .least_squares import (
    Affine,
    Moments,
    explained,
    fit_norm,
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
from .packing import layout_of
from .taps import Tap, at_rest, hear
from .teacher_places import TeacherPlaces

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
    batches: Sequence[MicroBatch],
    relation_layer: int,
    seed: int = 0,
    go_on: Callable[[], None] = lambda: None,
) -> Inheritance:
    """Gives a fresh student weights made of its teacher's, in place.

    It reads the batches several times, :func:`batches_read` of them in all.

    Args:
        student: float32, on the device of ``teacher``; its random weights stay where nothing takes
            their place, such as attention's routers.
        teacher: a whole encoder of a family of `encoder_families`, of layers up to
            ``relation_layer`` at least, in any floating-point type.
        batches: the sample, on the device.
        relation_layer: the teacher's layer whose maps are the signals, from 1.
        seed: of what is drawn: the rotation of the student's space, and where clusters begin.
        go_on: called before every batch of every pass; what it raises ends the fit.

    Raises:
        UserError: nothing can be learnt from the teacher's states, or least squares fail on them.
    """
    with at_rest(student, seed):  # rows of both models are then the same tokens
        try:
            return _Fit(student, TeacherPlaces(teacher), batches, relation_layer, go_on).run()
        except torch.linalg.LinAlgError as error:
            raise UserError(f"least squares fail on its states ({error})") from error


def batches_read(student: MiniMoeForRelations, batches: int) -> int:
    """Returns how often :func:`inherit` reads one of ``batches``, and asks whether to go on."""
    layers = student.config.num_hidden_layers
    has_norm = getattr(student.bert.embeddings, "LayerNorm", None) is not None
    # Of the teacher's states and of its embeddings; then, of each layer, what it reads and what the
    # second map of its attention reads.
    passes = 2 + has_norm + 2 * layers + (student.relation is not None)
    # Of the teacher's directions; of its last states and the student's.
    parts = 1 + 2 * (student.state_map is not None)
    return passes * batches + parts * _quarter(batches)


def _quarter(batches: int) -> int:
    return -(-batches // 4)


@dataclass
class _Seen:
    """What a teacher has at a place, in the student's space, and the way back to its own.

    Attributes:
        rows: [N, W].
        back: W → H, of ``rows`` what is nearest to the teacher's.
    """

    rows: Tensor
    back: Affine

    def from_student(self, rows: Tensor) -> Affine:
        """Fits what makes the teacher's rows, as near as it can, of the student's [N, W]: W → H."""
        return ridge(rows, self.rows).then(self.back)


class _Fit:
    """One student's start."""

    def __init__(
        self,
        student: MiniMoeForRelations,
        teacher: TeacherPlaces,
        batches: Sequence[MicroBatch],
        relation_layer: int,
        go_on: Callable[[], None],
    ) -> None:
        self._student = student
        self._teacher = teacher
        self._relation_layer = relation_layer
        self._batches = batches
        self._go_on = go_on
        self._width: int = student.config.hidden_size
        self._has_maps = student.relation is not None
        self._runs = runs_of_layers(
            student.config.num_hidden_layers, self._relation_layer, self._has_maps
        )
        self._layers: list[Layer] = student.bert.encoder.layers()
        self._kept = 0.0
        self._seen: dict[Tap, _Seen] = {}

    def run(self) -> Inheritance:
        """Fits part after part, from the embeddings to the relation loss's maps."""
        self._look_at_teacher()
        self._embed()
        fits = []
        for index, run in enumerate(self._runs):
            share = self._fit_layer(index)
            fits.append(LayerFit(run.start, run.stop - 1, share))
        if self._has_maps:
            self._fit_relation_maps(self._student.relation, self._states(self._batches))
        if self._student.state_map is not None:
            self._fit_state_map(self._student.state_map)
        tokens = len(self._seen[self._teacher.states(0)].rows)
        return Inheritance(tokens, self._kept, fits)

    def _first_layer(self, index: int) -> int:
        """The teacher's layer whose heads and neurons a student's layer takes over."""
        run = self._runs[index]
        return min(max(1, run.start), self._relation_layer)

    def _taps(self) -> list[Tap]:
        """The places of the teacher that anything is fitted to."""
        teacher = self._teacher
        taps = [teacher.states(0), teacher.maps_input(self._relation_layer)]
        for index, run in enumerate(self._runs):
            first = self._first_layer(index)
            inside = (
                teacher.maps_input(first),
                teacher.middle(first),
                teacher.neurons_input(first),
            )
            taps += [tap for tap in inside if tap is not None]
            taps.append(teacher.states(run.stop - 1))
        return list(dict.fromkeys(taps))

    def _look_at_teacher(self) -> None:
        """Finds the student's space, then the teacher's rows in it."""
        teacher, taps = self._teacher, self._taps()
        states = [teacher.states(layer) for layer in range(self._relation_layer)]
        moments = {tap: Moments() for tap in (*states, *taps)}
        # A quarter of the text tells directions; fits of many neurons need more of it.
        for batch in self._read(self._a_quarter()):
            for tap, rows in teacher.run(moments, batch).items():
                moments[tap].add(rows)
        covariances = [moments[tap].covariance for tap in states]
        if not all(each.isfinite().all() and each.trace() > 0 for each in covariances):
            raise UserError(_NOTHING_TO_LEARN)
        space = self._space(torch.stack([each / each.trace() for each in covariances]).sum(0))
        self._kept = float(
            sum((space.T @ each @ space).trace() / each.trace() for each in covariances)
            / len(covariances)
        )
        pieces: dict[Tap, list[Tensor]] = {tap: [] for tap in taps}
        for batch in self._read(self._batches):
            for tap, rows in teacher.run(taps, batch).items():
                if not rows.isfinite().all():
                    raise UserError(_NOTHING_TO_LEARN)
                pieces[tap].append(rows @ space.float())
        self._seen = {
            tap: _Seen(torch.cat(pieces[tap]), way_back(moments[tap], space)) for tap in taps
        }

    def _a_quarter(self) -> Sequence[MicroBatch]:
        return self._batches[: _quarter(len(self._batches))]

    def _read(self, batches: Sequence[MicroBatch]) -> Iterator[MicroBatch]:
        for batch in batches:
            self._go_on()
            yield batch

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

    def _hear(
        self, module: nn.Module, is_input: bool, batches: Sequence[MicroBatch] | None = None
    ) -> Tensor:
        """Runs the sample, or a part, through the student; returns the rows [N, …] at a place."""
        read = self._read(self._batches if batches is None else batches)
        return hear(self._student, Tap(module, is_input), read)

    def _states(self, batches: Sequence[MicroBatch]) -> Tensor:
        """What stands on the student reads: the states behind its last layer, [n, W]."""
        encoder = self._student.bert.encoder
        states = self._hear(self._layers[-1], is_input=False, batches=batches)
        return encoder.ln(states) if self._student.config.normalizes_input else states

    def _embed(self) -> None:
        """Puts the teacher's embeddings into the student's space."""
        embeddings, target = self._student.bert.embeddings, self._seen[self._teacher.states(0)].rows
        words, places, segments = tables = self._teacher.tables()
        if not all(table is None or table.isfinite().all() for table in tables):
            raise UserError("its embeddings are not all finite")
        norm = getattr(embeddings, "LayerNorm", None)
        read = torch.cat([self._embedded(batch, *tables) for batch in self._read(self._batches)])
        fit = ridge(read, target if norm is None else standardised(target))
        if norm is not None:
            # The norm takes any size away; a masked-LM head that is tied to the words needs theirs.
            scale = words.std() / (words @ fit.weight).std()
            fit = Affine(fit.weight * scale, fit.bias * scale)
        embeddings.word_embeddings.weight.copy_(words @ fit.weight)
        for table, mine in (
            (places, embeddings.position_embeddings.weight),
            (segments, embeddings.token_type_embeddings.weight),
        ):
            if table is not None:
                rows = min(len(table), len(mine))
                mine[:rows] = table[:rows] @ fit.weight
                mine[rows:] = 0.0
        own_segments = embeddings.token_type_embeddings.weight
        if segments is None:
            own_segments.zero_()
        elif not self._teacher.family.reads_segments:
            own_segments[:] = own_segments[0].clone()  # the one that all of its tokens are of
        own_segments += fit.bias
        if norm is not None:
            fit_norm(norm, self._hear(norm, is_input=True), target, keeps_variance=False)

    def _embedded(
        self, batch: MicroBatch, words: Tensor, places: Tensor | None, segments: Tensor | None
    ) -> Tensor:
        """Sums the teacher's embeddings of the kinds that students have, [n, width of tables]."""
        layout = layout_of(batch.attention_mask, keep_padding=False, keep_attentions=False)
        rows = words[layout.pack(batch.input_ids)]
        if places is not None:
            # Students count positions as their teachers do.
            first = self._student.bert.embeddings.first_position
            rows = rows + places[layout.positions(batch.input_ids, first)]
        if segments is not None:
            read = batch.token_type_ids if self._teacher.family.reads_segments else None
            rows = rows + segments[0 if read is None else layout.pack(read)]
        return rows

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
        end = self._seen[self._teacher.states(self._runs[index].stop - 1)].rows
        if is_last and not normalizes_input:
            # Nothing else reads these, and heads of tasks are tuned for states of unit variance: a
            # teacher's own may be much smaller. (A norm behind the layers would do that itself.)
            end = end / end.std(0).mean()
        middle = self._teacher.middle(self._first_layer(index))
        attended = fit_block(
            layer.attention.output,
            before,
            [self._attention_part(layer, read)],
            end if middle is None else self._seen[middle].rows,
        )
        tokens = layer.ln(attended) if normalizes_input else attended
        parts = self._fit_neurons(index, tokens)
        behind = fit_block(layer.output, attended, parts, end, keeps_variance=is_last)
        return explained(behind, end)

    def _fit_heads(self, index: int, read: Tensor) -> None:
        """Gives a layer's attention the teacher's heads whose values vary most.

        Scores of a narrower head are the nearest of its size: the leading singular values of the
        product of both maps, weighed by what they read, [N, W].
        """
        holder = self._layers[index].attention.self
        first = self._first_layer(index)
        to_teacher = self._seen[self._teacher.maps_input(first)].from_student(read)
        query, key, value = (to_teacher.then(each) for each in self._teacher.maps(first))
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
                maps = [noisy(each) for each in maps]
            for pieces, piece in zip(found.values(), maps, strict=True):
                pieces.append(piece)
        for name, pieces in found.items():
            whole = side_by_side(pieces)
            if name != "key":
                # Of a head's elements beyond its teacher's, both sides of a product would be zero,
                # and neither would ever learn.
                whole = noisy_beyond(whole, size, own_size)
            StudentMap(getattr(holder, name)).write(whole)

    def _fit_relation_maps(self, holder: Any, read: Tensor) -> None:
        """Gives maps to queries, keys and values the teacher's relations, of what is read [N, W].

        The Gram matrix of a relation head's vectors is the loss's whole input; of vectors of fewer
        elements it is nearest with their principal components.
        """
        place = self._teacher.maps_input(self._relation_layer)
        to_teacher = self._seen[place].from_student(read)
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
            StudentMap(linear).write(noisy_beyond(side_by_side(pieces), size, own_size))

    def _fit_state_map(self, linear: nn.Linear) -> None:
        """Gives a map of last states the teacher's, normalised as their loss does it."""
        place, rows = self._teacher.last_states(self._relation_layer), []
        for batch in self._read(self._a_quarter()):
            rows.append(self._teacher.run([place], batch)[place])
        goal = normalised(torch.cat(rows))
        StudentMap(linear).write(ridge(self._states(self._a_quarter()), goal))

    def _attention_part(self, layer: Layer, read: Tensor) -> Part:
        """What the second map of attention reads, [N, W], in a batch's own order."""
        dense = layer.attention.output.dense
        context, probability = self._hear(dense, is_input=True), None
        if isinstance(dense, ExpertLinear):
            # Experts are alike here, but their rows are sorted by them.
            expert, probability, _ = layer.attn_gate(read, None)
            counts = [int(batch.attention_mask.sum()) for batch in self._batches]
            rows = zip(context.split(counts), expert.split(counts), strict=True)
            context = torch.cat(
                [mine[chosen.argsort(stable=True).argsort()] for mine, chosen in rows]
            )
        return Part(_every(context), context, StudentMap(dense), probability)

    def _fit_neurons(self, index: int, tokens: Tensor) -> list[Part]:
        """Gives the feed-forward block of a layer, which reads ``tokens`` [N, W], its neurons."""
        layer, teacher_layer = self._layers[index], self._first_layer(index)
        place = self._teacher.neurons_input(teacher_layer)
        neurons = None
        if place is not None:
            first_map, sizes = self._teacher.neurons(teacher_layer)
            neurons = (self._seen[place].from_student(tokens).then(first_map), sizes)
        first, second = layer.intermediate.dense, layer.output.dense
        if isinstance(first, ExpertLinear):
            StudentMap(layer.ffn_gate).write(balanced_router(tokens, first.num_experts))
            expert, probability, _ = layer.ffn_gate(tokens, None)
            chosen: list[tuple[Tensor, int | None]] = [
                (expert == number, number) for number in range(first.num_experts)
            ]
        else:
            probability, chosen = None, [(_every(tokens), None)]
        parts = []
        for rows, number in chosen:
            if not rows.any():
                continue  # an expert without a token stays as it was drawn
            mine, own = tokens[rows], StudentMap(first, number)
            if neurons is None:
                # Of unit variance before the activation, which is linear near 0.
                drawn = own.read()
                own.write(Affine(drawn.weight / drawn(mine).std().clamp_min(1e-6), drawn.bias))
            else:
                self._choose_neurons(own, *neurons, mine)
            read = layer.intermediate.activation(own.read()(mine))
            of_expert = None if probability is None else probability[rows]
            parts.append(Part(rows, read, StudentMap(second, number), of_expert))
        return parts

    def _choose_neurons(self, own: StudentMap, whole: Affine, sizes: Tensor, mine: Tensor) -> None:
        """Gives a map of 4W neurons those of the teacher's that add most to some tokens.

        Args:
            own: the map.
            whole: to all of the teacher's neurons, W → I.
            sizes: of what each of these adds, [I].
            mine: the tokens, [n, W].
        """
        activation = self._layers[0].intermediate.activation
        added = torch.zeros_like(whole.bias)
        for chunk in mine.split(_CHUNK):
            added += (activation(whole(chunk)) * sizes).square().sum(0)
        drawn = own.read()
        kept = min(len(drawn.bias), len(added))
        own.write(over(drawn, whole.of(added.topk(kept).indices.sort().values)))


def _every(rows: Tensor) -> Tensor:
    return torch.ones(len(rows), dtype=torch.bool, device=rows.device)

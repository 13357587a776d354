"""Derives the sizes of teacher and students from a recipe and ``config.json`` files alone."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..config import ConfigError, RunConfig, StudentConfig
from ..config.model_types import Learns, Students
from ..data.row_counts import MASKED_SHARE
from ..encoder_families import ENCODER_FAMILIES
from ..model_description import (
    describe_model,
    description_of,
    model_values,
    read_model_json,
    with_our_names,
)
from ..models.compute import RelationPath
from ..models.submodels import (
    WHOLE,
    LayerShape,
    Sizes,
    SubModelShape,
    once_for_all_map,
    sub_model_shape,
    whole_shape,
)

# What students take over of a teacher that they are not built like.
_INHERITED = ("vocab_size", "max_position_embeddings", "type_vocab_size", "pad_token_id")
# Configurations of models that recipes name, for machines that do not have them.
_PUBLISHED: dict[str, dict[str, Any]] = {
    name: {
        "model_type": kind,
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "intermediate_size": 4 * hidden,
        "vocab_size": vocabulary,
        "max_position_embeddings": 514 if kind == "roberta" else 512,
        "type_vocab_size": 1 if kind == "roberta" else 2,
    }
    for name, kind, layers, hidden, heads, vocabulary in (
        ("bert-base-uncased", "bert", 12, 768, 12, 30522),
        ("bert-large-uncased", "bert", 24, 1024, 16, 30522),
        ("bert-base-cased", "bert", 12, 768, 12, 28996),
        ("bert-base-chinese", "bert", 12, 768, 12, 21128),
        ("roberta-base", "roberta", 12, 768, 12, 50265),
        ("roberta-large", "roberta", 24, 1024, 16, 50265),
        ("IDEA-CCNL/Erlangshen-MegatronBert-1.3B", "megatron-bert", 24, 2048, 8, 21248),
    )
}


@dataclass(frozen=True)
class EncoderSizes:
    """The sizes that decide an encoder's parameters and tensors.

    Attributes:
        family: ``bert``, ``roberta`` or ``megatron-bert``.
        shape: hidden size of the layers, and each layer's heads and neurons (of one expert).
        head_size: size of an attention head.
        width: hidden size of the whole model: of the signals and of what stands on top.
        vocabulary, positions, types: rows of the embedding tables.
        experts: numbers of attention and of feed-forward experts.
        relation_maps: whether signals come from maps of their own on the final hidden states.
        whole_layers: layers that run wholly; the one behind them, if any, gives its query, key
            and value only.
        passes: shapes of the passes of a step, several for once-for-all students.
        mapped_to: width that states are mapped to; 0 where none are learnt.
        mapped_states: states of a token that are: TinyBERT's two, or the last ones.
        masked_lm: whether a masked-LM head stands on top.
        gives_signals: whether its queries, keys and values are compared with the teacher's.
        gives_states: whether a teacher's last states are learnt too.
        runs_padded: whether it computes padding on any device: Hugging Face's class runs it.
        cut_by_columns: whether ranks may share it out by columns of its maps.
    """

    family: str
    shape: SubModelShape
    head_size: int
    width: int
    vocabulary: int
    positions: int
    types: int
    experts: tuple[int, int] = (1, 1)
    relation_maps: bool = False
    whole_layers: int = 0
    passes: tuple[SubModelShape, ...] = ()
    mapped_to: int = 0
    mapped_states: int = 2
    masked_lm: bool = False
    gives_signals: bool = True
    gives_states: bool = False
    runs_padded: bool = False
    cut_by_columns: bool = True

    @property
    def has_experts(self) -> bool:
        """Whether some block is a mixture."""
        return self.experts != (1, 1)

    def embedding_parameters(self) -> int:
        """Returns the number of parameters of the three tables and their LayerNorm."""
        rows = self.vocabulary + self.positions + self.types
        return self.shape.hidden * (rows + (0 if self.family == "megatron-bert" else 2))

    def layer_parameters(self, layer: LayerShape) -> tuple[int, int]:
        """Returns a layer's parameters: (those on every rank, those of all experts)."""
        hidden, attention = self.shape.hidden, layer.heads * self.head_size
        shared, experts = 4 * hidden, 0
        blocks = (
            (self.experts[0], 4 * hidden * attention + 3 * attention + hidden),
            (self.experts[1], 2 * hidden * layer.neurons + layer.neurons + hidden),
        )
        empty = (attention == 0, layer.neurons == 0)
        for (count, size), is_empty in zip(blocks, empty, strict=True):
            if is_empty:
                continue
            if count > 1:
                experts += count * size
                shared += hidden * count + count  # the router
            else:
                shared += size
        return shared, experts

    def parameters(self) -> tuple[int, int]:
        """Returns the model's parameters: (those on every rank, those of all experts)."""
        shared, experts = self.embedding_parameters() + self.top_parameters(), 0
        for layer in self.shape.layers:
            if not layer.missing:
                layer_shared, layer_experts = self.layer_parameters(layer)
                shared, experts = shared + layer_shared, experts + layer_experts
        return shared, experts

    def top_parameters(self) -> int:
        """Returns the number of parameters behind the layers."""
        width = self.width
        count = 2 * self.shape.hidden if self.family == "megatron-bert" else 0
        if self.relation_maps:
            count += 3 * width * (width + 1)
        if self.mapped_to:
            count += (width + 1) * self.mapped_to
        if self.masked_lm:
            count += width * (width + 3) + self.vocabulary
        return count

    def largest_tensor(self) -> int:
        """Returns the elements of the largest tensor: word embeddings, or a stack of experts."""
        stacks = [
            self.experts[1] * layer.neurons * self.shape.hidden for layer in self.shape.layers
        ]
        return max([self.vocabulary * self.shape.hidden, *stacks])

    def paths(self) -> list[RelationPath]:
        """Lists what each pass of a step computes."""
        return [self._path(shape) for shape in self.passes or (self.shape,)]

    def _path(self, shape: SubModelShape) -> RelationPath:
        layers = [layer for layer in shape.layers if not layer.missing]
        count, width = len(layers), self.width
        on_top = float(self.mapped_states * width * self.mapped_to)
        if self.masked_lm:
            on_top += MASKED_SHARE * (width**2 + width * self.vocabulary)
        return RelationPath(
            layers=min(self.whole_layers, count),
            hidden=shape.hidden,
            intermediate=sum(layer.neurons for layer in layers) / max(1, count),
            router_outputs=sum(number for number in self.experts if number > 1),
            attention=sum(layer.heads for layer in layers) * self.head_size / max(1, count),
            signals=width if self.gives_signals else 0,
            on_top=on_top,
        )


# Exports that an earlier stage will leave: folder -> configuration.
Exports = Mapping[str, Mapping[str, Any]]


def teacher_sizes(config: RunConfig, future_exports: Exports) -> EncoderSizes | None:
    """Returns the sizes of the teacher, cut at its relation layer; None where none runs.

    Args:
        config: the run.
        future_exports: configurations of models that an earlier stage will export.

    Raises:
        ConfigError: its sizes are not known here.
    """
    if not config.objective.relation_weight:
        return None
    name = config.teacher.model_name_or_path
    values = model_json(name, "teacher.model_name_or_path", future_exports)
    layer = config.teacher.relation_layer
    layers = values["num_hidden_layers"] if layer == -1 else layer
    neurons = {"intermediate_size": 4 * values["hidden_size"]}  # where a later export says nothing
    described = description_of(neurons | dict(values), name, name, foreign=True)
    whole = replace(
        _of_json({**values, "num_hidden_layers": layers}),
        runs_padded=not described.runs_as_students,
        cut_by_columns=described.runs_as_students and not described.is_native_student,
    )
    if config.kind.learns is Learns.STATES:
        return replace(whole, gives_signals=False)
    if config.learns_last_states:
        return replace(whole, gives_states=True)
    if whole.relation_maps:
        return whole
    return replace(whole, whole_layers=layers - 1)


def student_json(
    config: RunConfig, options: StudentConfig, future_exports: Exports
) -> dict[str, Any]:
    """Returns a student's configuration, as its export will have it.

    Raises:
        ConfigError: the model that it starts from is not known here.
    """
    start = None if options.has_copies else options.initial_weights
    if config.kind.students is Students.SUB_MODEL:
        start = start or options.model_name_or_path
    # A student of an earlier stage is of the size that the options give (checked before a run).
    if start is not None and start not in future_exports:
        described = describe_model(start, f"students.{options.name}")
        if described is not None and described.is_native_student:
            values = read_model_json(described.folder)
            sparse = {} if options.sparsity is None else {"sparsity": options.sparsity}
            return {**values, **sparse, "relation_projections": True} if sparse else values
    option = f"students.{options.name}.model_name_or_path"
    if options.model_name_or_path is None:
        option = "teacher.model_name_or_path"
    name = options.model_name_or_path or config.teacher.model_name_or_path
    values = {
        **_base_of_students(model_json(name, option, future_exports)),
        "model_type": "minimoe",
        "num_hidden_layers": options.layer,
        "hidden_size": options.hidden,
        "num_attention_heads": options.heads,
        "intermediate_size": options.neurons_of_an_expert,
        "attention_experts": options.attention_experts,
        "feedforward_experts": options.feedforward_experts,
        "relation_projections": config.kind.students is Students.ONCE_FOR_ALL
        or config.projects_relations(options.attention_experts, options.feedforward_experts),
    }
    for name in ("sparsity_map", "head_dim"):  # the base's own
        values.pop(name, None)
    if options.ofa_layer and options.ofa_hidden:
        head_size = options.hidden // options.heads
        whole = Sizes(options.layer, options.heads, head_size, options.neurons_of_an_expert)
        sub_models = once_for_all_map(whole, options.ofa_layer, options.ofa_hidden)
        values |= {"model_type": "minimoe-elastic", "sparsity_map": sub_models, "sparsity": WHOLE}
    return values


def _base_of_students(base: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what students take over of a configuration, and the family that they are of."""
    family = ENCODER_FAMILIES.get(base["model_type"])
    if family is None or not family.only_teaches:
        return {**base, "family": base.get("family", base["model_type"])}
    return {name: base[name] for name in _INHERITED if name in base} | {"family": family.student}


def student_sizes(
    config: RunConfig, options: StudentConfig, future_exports: Exports
) -> EncoderSizes:
    """Returns the sizes of a student; arguments and errors are those of :func:`student_json`."""
    values = student_json(config, options, future_exports)
    sizes = _of_json(values)
    if config.kind.students is Students.ONCE_FOR_ALL:
        neurons = values.get("intermediate_size", 4 * sizes.shape.hidden)
        whole = Sizes(len(sizes.shape.layers), options.heads, sizes.head_size, neurons)
        sub_models = values["sparsity_map"]
        passes = tuple(sub_model_shape(whole, sub_models, name) for name in sub_models)
        sizes = replace(sizes, passes=passes)
    return _with_objective(config, sizes, future_exports)


def _with_objective(
    config: RunConfig, sizes: EncoderSizes, future_exports: Exports
) -> EncoderSizes:
    """Adds what the objective puts on top of a student, and sets which layers it runs."""
    layers = len(sizes.shape.layers)
    if config.kind.students is Students.ENCODER:
        sizes = replace(sizes, relation_maps=config.projects_relations(*sizes.experts))
    learns_states = config.kind.learns is Learns.STATES
    if learns_states or config.learns_last_states:
        name = config.teacher.model_name_or_path
        teacher_hidden = model_json(name, "teacher.model_name_or_path", future_exports)[
            "hidden_size"
        ]
    if learns_states:
        return replace(
            sizes,
            relation_maps=False,
            whole_layers=layers,
            mapped_to=teacher_hidden,
            gives_signals=False,
        )
    if config.objective.mlm_weight:
        # The head reads the last states; a plain student's signals are then a by-product.
        learns = bool(config.objective.relation_weight)
        sizes = replace(sizes, whole_layers=layers, masked_lm=True, gives_signals=learns)
    if config.learns_last_states:
        return replace(sizes, whole_layers=layers, mapped_to=teacher_hidden, mapped_states=1)
    if config.objective.mlm_weight:
        return sizes
    if not sizes.relation_maps:
        return replace(sizes, whole_layers=layers - 1)
    return sizes


def model_json(name: str, option: str, future_exports: Exports) -> Mapping[str, Any]:
    """Returns a model's configuration: a folder's, a downloaded one's, or a well-known name's.

    Raises:
        ConfigError: it is none of these, or its sizes are not in it.
    """
    if name in future_exports:
        return future_exports[name]
    described = describe_model(name, option, teaches=True)
    if described is not None:
        return with_our_names(model_values(described.folder))
    if name not in _PUBLISHED:
        raise ConfigError(
            f"{option}: the sizes of {name} are not known here; give a folder with its "
            f"config.json, or one of {', '.join(_PUBLISHED)}"
        )
    return _PUBLISHED[name]


def _of_json(values: Mapping[str, Any]) -> EncoderSizes:
    """Returns the sizes of a whole encoder from its ``config.json``."""
    hidden, layers = values["hidden_size"], values["num_hidden_layers"]
    heads = values.get("num_attention_heads", 12)
    sizes = Sizes(layers, heads, hidden // heads, values.get("intermediate_size", 4 * hidden))
    shape = whole_shape(sizes)
    if values.get("sparsity_map"):
        shape = sub_model_shape(sizes, values["sparsity_map"], values.get("sparsity", WHOLE))
    return EncoderSizes(
        family=str(values.get("family", values["model_type"])),
        shape=shape,
        head_size=sizes.head_size,
        width=hidden,
        vocabulary=values["vocab_size"],
        positions=values.get("max_position_embeddings", 512),
        types=values.get("type_vocab_size", 2),
        experts=(values.get("attention_experts", 1), values.get("feedforward_experts", 1)),
        relation_maps=bool(values.get("relation_projections", False)),
        whole_layers=len(shape.layers),
    )

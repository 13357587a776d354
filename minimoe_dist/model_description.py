"""Describes models by their ``config.json`` and the names of their files, without torch."""

import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from .config.problems import dotted, message_of
from .durable import hash_file, hash_json, sampled_hash
from .encoder_families import ENCODER_FAMILIES, EncoderFamily
from .errors import UserError, first_line
from .foreign import is_whole_number, read_json
from .megatron_files.headers import is_megatron_folder, megatron_values, rank_paths
from .model_paths import (
    TOKENIZERS,
    cached_file,
    download_config,
    hub_is_reachable,
    not_downloadable,
    resolve_model_path,
)

# What can be distilled, fine-tuned and exported; `models.pretrained` has their classes.
FAMILIES = tuple(name for name, family in ENCODER_FAMILIES.items() if not family.only_teaches)
EXPERTS, SLICEABLE = "minimoe", "minimoe-elastic"  # the students of this package
MODEL_TYPES = (*FAMILIES, EXPERTS, SLICEABLE)
# Kinds of rotary positions that transformers knows; "default" is where nothing is said.
ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "longrope", "llama3", "proportional")
# What only teaches besides.
TEACHERS = tuple(name for name, family in ENCODER_FAMILIES.items() if family.only_teaches)
# Weights in one file, or the list of the files that they are in.
WEIGHTS, WEIGHTS_INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLE, PICKLE_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
_WHOLE = "0"  # the sparsity of a model that nothing was cut out of
# What a configuration says of whoever saved it.
_OF_THE_WRITER = ("_name_or_path", "transformers_version", "torch_dtype", "dtype")
_REMEDY = "give the config.json that the model was saved with"


def _size(most: int, default: Any = ...) -> Any:
    """Declares a field that counts; its bounds, far beyond any model, tell a damaged file."""
    return Field(default, ge=1, le=most)


class ModelDescription(BaseModel):
    """A BERT-like model; the fields are those of its ``config.json``, checked.

    Attributes:
        path: the model, as the user names it.
        folder: the folder of its files.
        num_attention_heads, intermediate_size: of one expert; in a published student, of all
            experts together.
        family_name: the family that a student is built like.
        moe: of a published student, ``attention_experts,feedforward_experts``.
        sparsity: the sub-model whose weights the folder holds; "0" for the whole model.
        sparsity_map: sub-models that can be cut out; None where there is no map.
        num_relation_heads: relation heads that a student was distilled with; None for others.
        id2label: labels of a classification head by number; empty where there is none.
        architectures: names of the classes that the weights were saved from.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True, protected_namespaces=())

    path: str
    folder: Path
    model_type: str
    hidden_size: int = _size(1 << 17)
    num_hidden_layers: int = _size(4096)
    num_attention_heads: int = _size(4096)
    intermediate_size: int = _size(1 << 21)
    vocab_size: int = _size(1 << 30)
    max_position_embeddings: int = _size(1 << 24, 512)
    type_vocab_size: int = _size(4096, 2)
    pad_token_id: int | None = Field(None, ge=0)
    hidden_dropout_prob: float = Field(0.1, ge=0, le=1)
    family_name: str | None = Field(None, alias="family")
    attention_experts: int = _size(4096, 1)
    feedforward_experts: int = _size(4096, 1)
    moe: str = "1,1"
    sparsity: Annotated[str, BeforeValidator(str)] = _WHOLE
    sparsity_map: dict[str, Any] | None = None
    relation_projections: bool = False
    num_relation_heads: int | None = _size(4096, None)
    num_hidden_groups: int = _size(4096, 1)  # of ALBERT's layers, which share their weights
    inner_group_num: int = _size(4096, 1)  # layers of such a group
    num_key_value_heads: int | None = _size(4096, None)
    position_embedding_type: str | None = None
    head_dim: int | None = _size(1 << 17, None)
    rope_scaling: dict[str, Any] = Field(default_factory=dict)
    rope_parameters: dict[str, Any] = Field(default_factory=dict)
    is_decoder: bool = False
    add_cross_attention: bool = False
    embedding_size: int | None = _size(1 << 17, None)  # of words, where they are widened
    use_task_id: bool = False  # whether ERNIE adds embeddings of kinds of tasks
    id2label: dict[str, Any] = Field(default_factory=dict)
    architectures: list[str] = Field(default_factory=list)

    @field_validator("moe")
    @classmethod
    def _two_counts(cls, value: str) -> str:
        if not re.fullmatch(r" *[1-9]\d{0,3} *, *[1-9]\d{0,3} *", value):
            raise ValueError("must be two counts of experts, as 1,4")
        return value

    @field_validator("id2label", mode="before")
    @classmethod
    def _by_number(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        labels = {str(number): label for number, label in value.items()}
        if not all(map(is_whole_number, labels)):
            raise ValueError("must name labels by their numbers")
        return labels

    @property
    def family(self) -> str:
        """The family that the model is of, or that a student is built like."""
        known = self.encoder_family
        return self.family_name or (known.student if known is not None else "bert")

    @property
    def encoder_family(self) -> EncoderFamily | None:
        """The record of its encoder; None for students of this package."""
        return ENCODER_FAMILIES.get(self.model_type)

    @property
    def only_teaches(self) -> bool:
        """Whether students are not built like it: it teaches, and is fine-tuned to do so."""
        return self.model_type in TEACHERS

    @property
    def runs_as_students(self) -> bool:
        """Whether our own encoder runs it, of the family that its students are of."""
        family = self.encoder_family
        if family is None or not family.only_teaches:
            return True
        is_widened = self.embedding_size not in (None, self.hidden_size)
        return family.is_alike and not is_widened and not self.use_task_id

    @property
    def architecture(self) -> str:
        """The class that the weights were saved from; empty where the file does not say."""
        return self.architectures[0] if self.architectures else ""

    @property
    def is_native_student(self) -> bool:
        """Whether it is a student in the layout of this package, whose code it needs."""
        return self.model_type in (EXPERTS, SLICEABLE)

    @property
    def experts(self) -> tuple[int, int]:
        """The numbers of attention and of feed-forward experts; 1 is a plain block."""
        if self.is_native_student:
            return self.attention_experts, self.feedforward_experts
        attention, feedforward = map(int, self.moe.split(","))
        return attention, feedforward

    @property
    def is_published_student(self) -> bool:
        """Whether it is a student in the published layout, which transformers cannot load."""
        return not self.is_native_student and (self.experts != (1, 1) or self.sparsity != _WHOLE)

    @property
    def is_student(self) -> bool:
        """Whether it was distilled."""
        return self.num_relation_heads is not None

    @property
    def heads_of_an_expert(self) -> int:
        """The attention heads of a plain block, or of one attention expert."""
        return self.num_attention_heads // (1 if self.is_native_student else self.experts[0])

    @property
    def neurons_of_an_expert(self) -> int:
        """The feed-forward neurons of a plain block, or of one expert."""
        return self.intermediate_size // (1 if self.is_native_student else self.experts[1])

    @property
    def signals_on_top(self) -> bool:
        """Whether the relation signals come from maps of their own behind the last layer."""
        return self.relation_projections or self.is_published_student

    @property
    def longest_sequence(self) -> int:
        """The tokens of the longest sequence; RoBERTa's positions begin behind its padding id."""
        if self.family != "roberta":
            return self.max_position_embeddings
        known = self.encoder_family
        padding = 1 if self.pad_token_id is None else self.pad_token_id
        if known is not None and known.position_padding is not None:
            padding = known.position_padding
        return self.max_position_embeddings - padding - 1

    @property
    def is_megatrons(self) -> bool:
        """Whether the folder is a checkpoint of Megatron-LM's, whose ranks have the weights."""
        return is_megatron_folder(self.folder)

    @property
    def has_safetensors(self) -> bool:
        """Whether the folder has weights in safetensors."""
        return _has_any(self.folder, WEIGHTS, WEIGHTS_INDEX)

    @property
    def has_sliceable_weights(self) -> bool:
        """Whether the folder has weights that can be read tensor by tensor."""
        return self.has_safetensors or self.is_megatrons

    @property
    def has_weights(self) -> bool:
        """Whether the folder has weights of any kind."""
        return self.has_sliceable_weights or _has_any(self.folder, PICKLE, PICKLE_INDEX)

    @property
    def has_tokenizer(self) -> bool:
        """Whether the folder has a vocabulary."""
        return _has_any(self.folder, *TOKENIZERS)

    def contents(self) -> str:
        """Returns a hexadecimal hash of its configuration and of samples of its weights.

        It tells one model from another; where the folder lies and who wrote it does not count. Of
        a model on the hub, whose weights may still have to be downloaded, it is the commit.
        """
        return self._contents(sampled_hash)

    def whole_contents(self) -> str:
        """Returns the same of all bytes of its weights, which reads them once."""
        return self._contents(lambda path: str(hash_file(path)["sha256"]))

    def _contents(self, hash_of: Callable[[Path], str]) -> str:
        if self.folder.parent.name == "snapshots":  # of a hub's cache, named by its commit
            return self.folder.name
        values = model_values(self.folder)
        kept = {name: value for name, value in values.items() if name not in _OF_THE_WRITER}
        files = sorted(
            path
            for pattern in ("*.safetensors", "pytorch_model*.bin")
            for path in self.folder.glob(pattern)
        )
        if self.is_megatrons:
            files = rank_paths(self.folder)
        return hash_json({"config": kept, "weights": [hash_of(path) for path in files]})


def _has_any(folder: Path, *names: str) -> bool:
    return any((folder / name).is_file() for name in names)


def describe_model(
    path: str, option: str | None = None, *, teaches: bool = False, foreign: bool = False
) -> ModelDescription | None:
    """Describes a model on this machine; returns None for a hub name that is not cached here.

    Args:
        path: folder, ``package:NAME``, or name on the Hugging Face hub.
        option: the option that names the model, for messages.
        teaches: whether it may be anything that can teach.
        foreign: whether it may be of a type that students are not built like.

    Raises:
        UserError: no such folder, a model of another type, or a ``config.json`` that has fields
            missing, of the wrong type or out of range.
    """
    folder = resolve_model_path(path, option)
    if not Path(folder).is_dir():
        cached = cached_file(folder, "config.json")
        if cached is None:
            return None
        folder = os.path.dirname(cached)
    if not teaches and is_megatron_folder(Path(folder)):
        where = f"{option}: {path}" if option else path
        raise UserError(
            f"{where} is a checkpoint of Megatron-LM's, which only teaches as it is; "
            f"convert it: minimoe-dist convert --input {path} --output {path}-huggingface"
        )
    foreign = foreign or teaches
    return description_of(model_values(folder), path, folder, option, foreign=foreign)


def require_model(
    path: str, option: str, *, weights: bool = True, teaches: bool = False, foreign: bool = False
) -> ModelDescription:
    """Describes a model that a run needs, and downloads the ``config.json`` of a hub's.

    Args:
        path: folder, ``package:NAME``, or name on the Hugging Face hub.
        option: the option that names the model, for messages.
        weights: whether its weights are needed too. They are not downloaded here.
        teaches: see :func:`describe_model`.
        foreign: likewise.

    Raises:
        UserError: as :func:`describe_model`; or the name is neither on this machine nor can be
            downloaded, or weights that are needed are not there.
    """
    described = describe_model(path, option, teaches=teaches, foreign=foreign)
    if described is None:
        download_config(path, option)
        described = describe_model(path, option, teaches=teaches, foreign=foreign)
        assert described is not None, "it has just been downloaded"
    if weights and not described.has_weights:
        if Path(resolve_model_path(path, option)).is_dir():
            raise UserError(f"{option}: {path} has no weights; copy its {WEIGHTS} into the folder")
        if not hub_is_reachable():
            raise not_downloadable(path, option, "its weights are not on this machine")
    return described


def model_values(folder: str | Path) -> dict[str, Any]:
    """Returns what a model's ``config.json`` says, or would of a checkpoint of Megatron's.

    Raises:
        UserError: it is missing or not a JSON object; or the checkpoint is damaged or incomplete.
    """
    if is_megatron_folder(Path(folder)):
        return megatron_values(Path(folder))
    return read_model_json(folder)


def read_model_json(folder: str | Path) -> dict[str, Any]:
    """Reads the ``config.json`` of a folder, unchecked.

    Raises:
        UserError: it is missing or not a JSON object.
    """
    path = Path(folder) / "config.json"
    if not os.path.lexists(path):
        raise UserError(f"{path}: missing; give a model's folder")
    try:
        values = read_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable as JSON ({first_line(error)}); {_REMEDY}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: no JSON object; {_REMEDY}")
    return values


def description_of(
    values: Mapping[str, Any],
    path: str,
    folder: str | Path,
    option: str | None = None,
    *,
    foreign: bool = False,
) -> ModelDescription:
    """Checks a configuration and returns its description.

    Args:
        values: content of ``config.json``.
        path: the model, as the user names it.
        folder: the folder of its files.
        option: the option that names the model, for messages.
        foreign: see :func:`describe_model`.

    Raises:
        UserError: as :func:`describe_model`.
    """
    kind = values.get("model_type")
    allowed = (*MODEL_TYPES, *(TEACHERS if foreign else ()))
    if kind not in allowed:
        where = f"{option}: {path}" if option else path
        what = "neither teaches nor is a student"
        if kind in TEACHERS:
            what = "teaches and can be fine-tuned, and is for nothing else"
        raise UserError(
            f"{where} is of type {kind or 'none (config.json has no model_type)'}, which {what}; "
            f"give a model of type {', '.join(allowed)}"
        )
    # transformers writes null for what a model has not.
    present = {key: value for key, value in with_our_names(values).items() if value is not None}
    try:
        described = ModelDescription.model_validate(
            {**present, "path": path, "folder": Path(folder)}
        )
    except ValidationError as error:
        (detail, *_) = error.errors()
        fault = "is missing" if detail["type"] == "missing" else message_of(detail)
        raise UserError(
            f"{Path(folder) / 'config.json'}: {dotted(detail['loc'])}: {fault}; {_REMEDY}"
        ) from None
    problem = _contradiction(described) or _misread(values)
    if problem is not None:
        raise UserError(f"{Path(folder) / 'config.json'}: {problem}; {_REMEDY}")
    return described


def with_our_names(values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a configuration with its sizes by our names too.

    Args:
        values: content of ``config.json``, unchecked.
    """
    family = ENCODER_FAMILIES.get(values.get("model_type", ""))
    names = {} if family is None else family.names
    renamed = {name: values[theirs] for name, theirs in names.items() if theirs in values}
    kept = {**values, **renamed}
    # Students of a teacher that reads no segments have their own, however many it names.
    is_said_of_others = (
        family is not None
        and ENCODER_FAMILIES[family.student].reads_segments
        and not family.reads_segments
    )
    if is_said_of_others or kept.get("type_vocab_size") == 0:
        kept.pop("type_vocab_size", None)
    return kept


def _misread(values: Mapping[str, Any]) -> str | None:
    """Returns a message about the first field that a family's class ignores and should not."""
    family = ENCODER_FAMILIES.get(values.get("model_type", ""))
    if family is None:
        return None
    counts = family.student == "roberta" and family.position_padding is None
    if counts and values.get("pad_token_id", 1) is None:
        return "pad_token_id: null, and positions are counted from it"
    says_base = {name for name in ("rope_parameters", "rope_theta") if values.get(name)}
    for name, computed in family.computes.items():
        if name == "rotary_emb_base" and says_base:
            continue  # these are what is read
        if values.get(name) not in (None, computed):
            return (
                f"{name}: {values[name]}, and transformers' {values['model_type']} computes with "
                f"{computed}, whatever stands there"
            )
    return None


def _unknown_rope(parameters: Mapping[str, Any]) -> str | None:
    """Returns the kind of rotary positions where nobody knows it; kinds of layers may differ."""
    nested: list[Mapping[str, Any]] = [
        value for value in parameters.values() if isinstance(value, dict)
    ]
    for one in nested or [parameters]:
        kind = one.get("rope_type", one.get("type", ROPE_TYPES[0]))
        if kind not in ROPE_TYPES:
            return str(kind)
    return None


def _contradiction(model: ModelDescription) -> str | None:
    """Returns a message about the first fields that no model here can have, or have together."""
    attention, feedforward = (1, 1) if model.is_native_student else model.experts
    heads, hidden = model.num_attention_heads, model.hidden_size
    if heads % attention:
        return f"num_attention_heads: {heads} is no multiple of the {attention} experts of moe"
    if model.intermediate_size % feedforward:
        return (
            f"intermediate_size: {model.intermediate_size} is no multiple of the {feedforward} "
            "experts of moe"
        )
    if hidden % model.heads_of_an_expert:
        return f"hidden_size: {hidden} is no multiple of its {model.heads_of_an_expert} heads"
    if model.family not in FAMILIES:
        return f"family: {model.family} is none of {', '.join(FAMILIES)}"
    if model.num_hidden_groups != 1:
        return f"num_hidden_groups: {model.num_hidden_groups}, and only 1 can be cut at a layer"
    if model.inner_group_num != 1:
        return f"inner_group_num: {model.inner_group_num}, and only 1 can be cut at a layer"
    if model.num_key_value_heads not in (None, heads):
        return (
            f"num_key_value_heads: {model.num_key_value_heads}, and relations want as many keys "
            f"and values as the {heads} heads have queries"
        )
    if model.head_dim not in (None, hidden // heads):
        return f"head_dim: {model.head_dim}, and {heads} heads of hidden_size {hidden} are read"
    family = model.encoder_family
    positions = model.position_embedding_type
    known = ("absolute",) if family is None else family.positions
    if positions is not None and positions not in known:
        # transformers has left others out, and would read such weights without a word.
        return f"position_embedding_type: {positions}, and only {' or '.join(known)} is read"
    for name in ("rope_scaling", "rope_parameters"):
        kind = _unknown_rope(getattr(model, name))
        if kind is not None:
            return f"{name}: {kind} is none of {', '.join(ROPE_TYPES)}"
    if model.is_decoder:
        return "is_decoder: true, and an encoder is wanted, whose tokens see those behind them too"
    if model.add_cross_attention:
        return "add_cross_attention: true, and an encoder is wanted, which reads one text alone"
    if (model.pad_token_id or 0) >= model.vocab_size:
        return f"pad_token_id: {model.pad_token_id} is not below vocab_size {model.vocab_size}"
    return None

"""Declares the options of a run as a pydantic tree: names, defaults, units and bounds.

Names are those of the command line wherever that has one (SEED arguments keep theirs). Every class
is frozen and refuses unknown keys.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator
from pydantic_core.core_schema import ValidationInfo

from ..runs.folder import RunFolder
from .folder_names import check_name, check_suffix
from .model_types import MODEL_TYPES, Learns, ModelType

if TYPE_CHECKING:
    ModelTypeName = str
else:
    ModelTypeName = Literal[tuple(MODEL_TYPES)]
DataType = Literal["bert_nil", "bert_mlm", "roberta_nil", "roberta_mlm"]
Schedule = Literal["linear", "cosine", "constant", "constant_with_warmup"]
Start = Literal["split", "random", "copies", "clusters", "teacher"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
TeacherDtype = Literal["auto", "float32", "bfloat16", "float16", "float8"]
CacheDtype = Literal["none", "float32", "bfloat16", "int8"]
TeacherLayout = Literal["replicated", "zero3", "tensor"]
TeacherImplementation = Literal["transformers", "megatron"]
Reaction = Literal["off", "warn", "stop"]
FolderName = Annotated[str, AfterValidator(check_name)]
FolderSuffix = Annotated[str, AfterValidator(check_suffix)]


def _expand_home(path: str | None) -> str | None:
    return path if path is None else os.path.expanduser(path)


class Section(BaseModel):
    """Base of all option classes: frozen, no unknown keys, no infinities, no bool as a number."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_bool_as_number(cls, value: Any, info: ValidationInfo) -> Any:
        annotation = cls.model_fields[str(info.field_name)].annotation
        numeric = {int, float} & {annotation, *get_args(annotation)}
        if isinstance(value, bool) and numeric:
            raise ValueError("must be a number")
        return value


class TeacherConfig(Section):
    """The frozen model whose relations are learnt."""

    model_name_or_path: str = Field(
        min_length=1,
        description="Hugging Face folder or hub name; package:NAME for one in a Python package",
    )
    relation_layer: int = Field(
        -1, description="layer whose Q, K, V are learnt, counted from 1; -1 is the last"
    )
    dtype: TeacherDtype = Field(
        "auto",
        description="of the teacher's pass; auto: bfloat16 where the device multiplies it; "
        "float8: its linear maps in 8 bits, on GPUs that multiply these",
    )
    layout: TeacherLayout = Field(
        "replicated",
        description="replicated: whole on every rank; zero3, tensor: shared out over ranks",
    )
    implementation: TeacherImplementation = Field(
        "transformers",
        description="whose code runs it; megatron: megatron-core's BertModel, of a MegatronBert "
        "with layout replicated or tensor",
    )
    parallel_size: int | None = Field(
        None, ge=1, description="ranks that hold one sharded teacher together; default all ranks"
    )
    offload: Literal["none", "cpu"] = Field(
        "none", description="with zero3: where its parts wait for their layer, cpu for host memory"
    )
    cache: CacheDtype = Field(
        "none",
        description="keep its signals on disk instead of computing them in every epoch: float32, "
        "bfloat16, or int8, which is the smallest",
    )
    cache_dir: str | None = Field(
        None,
        min_length=1,
        description="folder of caches, which runs may share; default relation_cache in output_dir",
    )
    cache_epochs: int = Field(
        1, ge=1, description="with a cache: epochs whose pairs differ; then they come again"
    )
    tokenizer_name_or_path: str | None = Field(
        None, description="tokenizer that the student is exported with; default the teacher's"
    )
    do_lower_case: bool | None = Field(
        None, description="true or false, whatever the tokenizer's files say of capitals"
    )
    use_slow_tokenizer: bool = Field(False, description="take the tokenizer written in Python")

    _cache_at_home = field_validator("cache_dir")(_expand_home)

    @field_validator("relation_layer")
    @classmethod
    def _layer_from_one(cls, value: int) -> int:
        if value != -1 and value < 1:
            raise ValueError("must be -1 (the last) or at least 1 (the first)")
        return value

    def ranks(self, world_size: int) -> int:
        """Returns the number of ranks that hold one teacher together, of `world_size` ranks."""
        if self.layout == "replicated":
            return 1
        return world_size if self.parallel_size is None else self.parallel_size


class StudentConfig(Section):
    """One student; flags for students change every student listed."""

    name: FolderName = Field("student", description="unique; names its output folder")
    model_name_or_path: str | None = Field(
        None, description="model whose configuration (not weights) it starts from; default teacher"
    )
    layer: int = Field(3, ge=1, description="number of layers")
    hidden: int = Field(384, ge=1, description="hidden size")
    heads: int = Field(12, ge=1, description="attention heads of one expert")
    neurons: int | None = Field(
        None, ge=1, description="feed-forward neurons of one expert; default 4 times hidden"
    )
    moe: str = Field("1,4", description="x,y: attention experts, feed-forward experts; 1 is plain")
    router_noise: float = Field(
        0.1, ge=0, le=1, description="half width of the uniform noise on router logits in training"
    )
    dropout: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="while it is distilled; default what its configuration says, as its export "
        "does in any case",
    )
    initial_weights: str | None = Field(
        None, description="folder of a student to start from; default a random start"
    )
    start: Start = Field(
        "split",
        description="teacher: all weights are made of the teacher's, narrowed and fitted to its "
        "states. Else of a random student, whose experts begin as parts of one wide block (split), "
        "each on its own (random), or as copies of the plain student of initial_weights (copies; "
        "clusters: behind routers that send clusters of tokens to them, and that are to stay: "
        "training.router_rate_factor 0)",
    )
    start_tokens: int | None = Field(
        None,
        ge=1,
        description="tokens of text that a start from the teacher is fitted to; default 131,072, "
        "or 16 for each neuron of each expert if that is more",
    )
    copy_noise: float = Field(
        0.01, ge=0, description="noise on copies, relative to their weights' standard deviation"
    )
    sparsity: str | None = Field(
        None, description="sub-model of a sparsified BERT that starts the student, in per cent"
    )
    ofa_layer: list[int] | None = Field(
        None, description="numbers of layers of a once-for-all student's sub-models, as 6,4,3"
    )
    ofa_hidden: list[int] | None = Field(
        None, description="hidden sizes of a once-for-all student's sub-models, as 768,384"
    )

    @field_validator("sparsity", mode="before")
    @classmethod
    def _sparsity_as_text(cls, value: Any) -> Any:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return f"{value:g}" if is_number else value

    @field_validator("ofa_layer", "ofa_hidden", mode="before")
    @classmethod
    def _numbers_of_text(cls, value: Any) -> Any:
        if isinstance(value, int) and not isinstance(value, bool):
            return [value]
        return [part.strip() for part in value.split(",")] if isinstance(value, str) else value

    @field_validator("moe")
    @classmethod
    def _two_counts(cls, value: str) -> str:
        if not re.fullmatch(r"\s*[1-9]\d*\s*,\s*[1-9]\d*\s*", value):
            raise ValueError("must be 'x,y' with x attention and y feed-forward experts, each >= 1")
        return re.sub(r"\s", "", value)

    @property
    def neurons_of_an_expert(self) -> int:
        """The feed-forward neurons of a plain block, or of one expert."""
        return 4 * self.hidden if self.neurons is None else self.neurons

    @property
    def has_copies(self) -> bool:
        """Whether its experts start as copies of a plain student's blocks."""
        return self.start in ("copies", "clusters")

    @property
    def attention_experts(self) -> int:
        """The number of attention experts, the x of ``moe``."""
        return int(self.moe.split(",")[0])

    @property
    def feedforward_experts(self) -> int:
        """The number of feed-forward experts, the y of ``moe``."""
        return int(self.moe.split(",")[1])


class ObjectiveConfig(Section):
    """The loss: relations, masked LM, or both, plus the experts' balance."""

    num_relation_heads: int = Field(
        32, ge=1, description="relation heads; divide the teacher's and every student's hidden size"
    )
    relation_weight: float = Field(
        1.0,
        ge=0,
        description="weight of the relation loss, of TinyBERT's in bert_tinybert; 0: none",
    )
    mlm_weight: float = Field(
        0.0, ge=0, description="weight of masked-LM cross entropy; needs a data_type *_mlm"
    )
    state_weight: float = Field(
        0.0,
        ge=0,
        description="weight of the squared error of the teacher's last states, which a map of the "
        "student's tries to give; 0: none",
    )
    balance_coefficient: float = Field(0.01, ge=0, description="weight of the balance in the loss")


class CorpusPath(Section):
    """One Megatron indexed corpus, or several by a pattern, with its share of the samples."""

    path: str = Field(min_length=1, description="prefix without .bin/.idx, or a glob")
    weight: float = Field(1.0, gt=0, description="share of the samples, relative to the others'")

    _at_home = field_validator("path")(os.path.expanduser)


def _as_corpora(value: Any) -> Any:
    entries = [value] if isinstance(value, str | Mapping | CorpusPath) else value
    if not isinstance(entries, list):
        return entries
    return [{"path": entry} if isinstance(entry, str) else entry for entry in entries]


class DataConfig(Section):
    """The corpora, and how they become batches."""

    record_path_or_regex: list[CorpusPath] = Field(
        min_length=1, description="training corpora: a prefix, a glob, or a list of them"
    )
    heldout_path_or_regex: list[CorpusPath] | None = Field(
        None, description="corpora to evaluate on; none means no evaluation"
    )
    data_type: DataType = Field("bert_nil", description="collation: *_nil no masks, *_mlm masked")
    max_length: int = Field(128, ge=8, description="tokens of a pair with its special tokens")
    short_sequence_probability: float = Field(
        0.1, ge=0, le=1, description="share of pairs of a random shorter length"
    )
    whole_word_mask: bool = Field(False, description="with *_mlm: mask all pieces of a word")
    prefetch_steps: int = Field(2, ge=0, description="steps that are read ahead")

    @field_validator("record_path_or_regex", "heldout_path_or_regex", mode="before")
    @classmethod
    def _paths_as_corpora(cls, value: Any) -> Any:
        return _as_corpora(value)


class HealthConfig(Section):
    """What a run watches for, and what it then does: nothing, a warning, or an end.

    An end leaves the newest checkpoint, and is no reason for Slurm to start again.
    """

    window: int = Field(100, ge=2, description="steps that experts and gradients are judged over")
    broken_teacher: Reaction = Field(
        "stop", description="signals that are the same for all tokens, or never finite"
    )
    exploding_gradient: Reaction = Field(
        "warn", description="a norm far above the median of the window before"
    )
    exploding_factor: float = Field(10.0, gt=1, description="how far: times the median")
    dead_expert: Reaction = Field("warn", description="an expert with next to no tokens")
    dead_share: float = Field(
        0.01, gt=0, lt=1, description="dead below this part of an even share of the tokens"
    )
    overloaded_expert: Reaction = Field("warn", description="an expert with next to all tokens")
    overloaded_share: float = Field(
        0.9, gt=0, lt=1, description="overloaded above this share of a block's tokens"
    )

    @field_validator("*", mode="before")
    @classmethod
    def _off_of_yaml(cls, value: Any, info: ValidationInfo) -> Any:
        choices = get_args(cls.model_fields[str(info.field_name)].annotation)
        return "off" if value is False and "off" in choices else value


Tracker = Literal["tensorboard", "wandb", "mlflow"]


class TrainingConfig(Section):
    """Batches, optimizer, schedule and intervals (in optimizer steps)."""

    per_device_train_batch_size: int = Field(128, ge=1, description="pairs a rank a micro-batch")
    per_device_eval_batch_size: int = Field(128, ge=1, description="pairs a rank in evaluation")
    num_grad_accum_steps: int = Field(1, ge=1, description="micro-batches a step")
    global_batch_size: int | None = Field(
        None,
        ge=1,
        description="pairs of a step on however many ranks; micro-batches follow, as large as "
        "per_device_train_batch_size at most; default that times num_grad_accum_steps times ranks",
    )
    learning_rate: float = Field(3e-4, gt=0, description="peak of the schedule")
    expert_rate_factor: float = Field(
        1.0,
        gt=0,
        description="rate of experts' maps, as a factor of learning_rate: of E experts each sees "
        "about 1/E of the tokens, for which the square-root rule of batch sizes gives 1/√E",
    )
    router_rate_factor: float = Field(
        1.0,
        ge=0,
        description="rate of routers, as a factor of learning_rate; 0: tokens stay with the "
        "experts that routers as they begin choose for them",
    )
    weight_decay: float = Field(0.01, ge=0, description="not on biases and LayerNorm")
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="decay of the first moment")
    adam_beta2: float = Field(0.999, ge=0, lt=1, description="decay of the second moment")
    adam_epsilon: float = Field(1e-6, gt=0, description="added to the root of the second moment")
    num_train_epochs: float = Field(5.0, gt=0, description="passes over the corpora")
    max_steps: int | None = Field(None, ge=1, description="stop there; overrides the epochs")
    warmup_proportion: float = Field(0.01, ge=0, lt=1, description="share of the steps to warm up")
    lr_scheduler_type: Schedule = Field("linear", description="schedule after the warm-up")
    max_grad_norm: float = Field(1.0, ge=0, description="clip the gradient's norm; 0 does not clip")
    log_interval: int = Field(1000, ge=1, description="steps between log lines")
    save_interval: int = Field(1000, ge=1, description="steps between checkpoints")
    eval_interval: int = Field(1000, ge=1, description="steps between evaluations")
    report_to: list[Tracker] = Field(
        ["tensorboard"],
        description="where curves go beside metrics.jsonl: tensorboard, wandb, mlflow, or none",
    )
    eval_sequences: int = Field(1024, ge=1, description="held-out pairs of an evaluation")
    keep_checkpoints: int = Field(2, ge=2, description="newest checkpoints that stay")
    ends_at_failed_save: bool = Field(False, description="end where a checkpoint cannot be written")
    max_bad_steps: int = Field(10, ge=1, description="stop after so many non-finite losses running")
    health: HealthConfig = HealthConfig()

    @field_validator("report_to", mode="before")
    @classmethod
    def _names_of_text(cls, value: Any) -> Any:
        if value is None or value == "none":
            return []
        return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


class ParallelConfig(Section):
    """The run's spread over processes and devices, and its precision."""

    zero_stage: int = Field(1, ge=0, le=3, description="ZeRO stage")
    deepspeed: str | None = Field(
        None, description="DeepSpeed JSON with ZeRO and precision; its values win"
    )
    expert_parallel_size: int = Field(
        1, ge=1, description="ranks that share one set of experts; divides world and experts"
    )
    precision: Precision = Field(
        "fp32",
        description="of the students' passes; masters are float32; auto: bf16 where the device "
        "multiplies it, else fp16 on GPUs and fp32 on CPUs",
    )
    adamw: Literal["auto", "torch", "deepspeed", "apex"] = Field(
        "auto", description="whose fused AdamW; auto: torch's, which waits for nothing"
    )
    layer_norm: Literal["auto", "torch", "apex"] = Field(
        "auto", description="whose LayerNorm; auto: torch's, which compiles into its neighbours"
    )
    compile: Literal["auto", "off"] = Field(
        "auto", description="auto: compile and record the passes of a step on GPUs"
    )
    use_cpu: bool = Field(False, description="train on CPUs although there is a GPU")
    timeout_seconds: int = Field(600, ge=1, description="limit of a collective, in seconds")


class SparsifyConfig(Section):
    """The share of text that ``minimoe-dist sparsify`` reads, and the sub-models that it makes."""

    fraction: float = Field(0.1, gt=0, le=1, description="share of the corpus that is read")
    sparsities: list[float] = Field(
        [0, 10, 20, 30, 40, 50, 60, 70, 80, 85, 90, 95, 98, 99],
        min_length=1,
        description="sub-models of the map, in per cent that they lose",
    )

    @field_validator("sparsities", mode="before")
    @classmethod
    def _numbers_of_text(cls, value: Any) -> Any:
        return [part.strip() for part in value.split(",")] if isinstance(value, str) else value

    @field_validator("sparsities")
    @classmethod
    def _in_per_cent(cls, value: list[float]) -> list[float]:
        if not all(0 <= sparsity < 100 for sparsity in value):
            raise ValueError("must be per cent of at least 0 and below 100")
        return value


class RunOptions(Section):
    """All options of one run; `RunConfig` holds them against each other."""

    model_type: ModelTypeName = Field("moebert_minilm", description="kind of student and objective")
    output_dir: str = Field(min_length=1, description="folder for checkpoints, logs and exports")
    model_suffix: FolderSuffix = Field("", description="added to the export's name")
    iteration: int | None = Field(
        None, ge=1, le=2, description="1: teacher to assistant, 2: assistant to student"
    )
    seed: int = Field(776, ge=0, lt=2**63, description="of data, masks, dropout, noise and start")
    compat: Literal["none", "seed"] = Field(
        "none", description="seed: the original system's numbers, its dropout and epsilons included"
    )
    resume: Literal["auto", "never"] = Field(
        "auto", description="auto goes on from the newest whole checkpoint in output_dir"
    )
    allow_changed_options: bool = Field(
        False, description="resume although options or corpora changed"
    )
    tradeoff_lambda: float | None = Field(
        None,
        ge=0,
        description="copy the sparse student with the best λ-tradeoff to export/best (MiniDisc: "
        "0.2), for the next stage to learn from",
    )
    teacher: TeacherConfig
    students: list[StudentConfig] = Field(
        default_factory=lambda: [StudentConfig()], min_length=1, description="the students"
    )
    objective: ObjectiveConfig = ObjectiveConfig()
    data: DataConfig
    training: TrainingConfig = TrainingConfig()
    parallel: ParallelConfig = ParallelConfig()
    sparsify: SparsifyConfig = SparsifyConfig()

    # The shell expands "~" neither in a recipe nor behind an equals sign.
    _at_home = field_validator("output_dir")(os.path.expanduser)

    @property
    def kind(self) -> ModelType:
        """The description of its model type."""
        return MODEL_TYPES[self.model_type]

    @property
    def learns_relations(self) -> bool:
        """Whether students learn a teacher's relations, alone or beside masked tokens."""
        return bool(self.objective.relation_weight) and self.kind.learns is Learns.RELATIONS

    @property
    def learns_last_states(self) -> bool:
        """Whether students learn the last states of a teacher of relations too."""
        return self.learns_relations and bool(self.objective.state_weight)

    def projects_relations(self, attention_experts: int, feedforward_experts: int) -> bool:
        """Whether a student's relations are of maps behind its layers, which only train.

        Else they are of its last layer's own queries, keys and values, as its teacher's are. Those
        of experts with last states to learn are too: what a teacher's last layer reads and what it
        gives would both have to be in the same states. An expert's choice of attention, though,
        needs what it gives, for its router to learn.
        """
        if (attention_experts, feedforward_experts) == (1, 1) or not self.learns_relations:
            return False
        return attention_experts > 1 or not self.learns_last_states

    def global_batch_size(self, world_size: int) -> int:
        """Returns the number of pairs of one optimizer step on `world_size` ranks."""
        training = self.training
        if training.global_batch_size is not None:
            return training.global_batch_size
        return training.per_device_train_batch_size * training.num_grad_accum_steps * world_size

    @property
    def relation_cache_dir(self) -> str:
        """The folder of its teacher's caches."""
        return self.teacher.cache_dir or str(RunFolder(Path(self.output_dir)).relation_cache)

    def export_folder(self, student: str) -> str:
        """Returns the folder that a student is exported to."""
        return str(RunFolder(Path(self.output_dir)).export(student + self.model_suffix))

    def to_yaml(self) -> str:
        """Returns the run as YAML that `load_run_config` reads back to an equal one."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)

"""The options of a run as they stand in its files: whole, and typed as far as others read them.

They may be of another version, whose options this one would refuse.
"""

from typing import Any

from pydantic import Field, model_serializer, model_validator

from .reading import Record


class SavedOptions(Record):
    """The options of any command, as it saved them.

    Attributes:
        tree: all of them, as they stand there.
    """

    tree: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _with_tree(cls, values: Any) -> Any:
        return {**values, "tree": values} if isinstance(values, dict) else values

    @model_serializer
    def _as_tree(self) -> dict[str, Any]:
        return self.tree


class _Corpus(Record):
    path: str
    weight: float = 1.0


class _Data(Record):
    record_path_or_regex: list[_Corpus] = Field(default_factory=list)
    heldout_path_or_regex: list[_Corpus] | None = None
    max_length: int | None = None


class _Teacher(Record):
    model_name_or_path: str | None = None


class _Objective(Record):
    num_relation_heads: int | None = None
    relation_weight: float = 1.0
    state_weight: float = 0.0
    mlm_weight: float = 0.0


class _Student(Record):
    name: str
    moe: str = ""


class _Training(Record):
    per_device_train_batch_size: int = 0
    num_grad_accum_steps: int = 1
    global_batch_size: int | None = None
    learning_rate: float | None = None

    def sequences_of_step(self, world_size: int) -> int:
        """Returns the number of sequences of a step."""
        if self.global_batch_size is not None:
            return self.global_batch_size
        return self.per_device_train_batch_size * self.num_grad_accum_steps * world_size


class _Parallel(Record):
    precision: str | None = None


class SavedRecipe(SavedOptions):
    """The resolved recipe of distilling or sparsifying."""

    model_type: str | None = None
    seed: int | None = None
    students: list[_Student] = Field(default_factory=list)
    data: _Data = _Data()
    teacher: _Teacher = _Teacher()
    objective: _Objective = _Objective()
    training: _Training = _Training()
    parallel: _Parallel = _Parallel()


class SavedTuning(SavedOptions):
    """The options of fine-tuning."""

    text_columns: list[str] | None = None
    label_column: str | None = None
    max_length: int | None = None
    word_column: int | None = None
    tag_column: int | None = None

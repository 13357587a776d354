"""The summary that a run leaves at its end, ``summary.json``."""

from collections.abc import Mapping

from pydantic import Field

from .options import SavedRecipe
from .reading import Record


class SubModelSummary(Record):
    """The results of a sub-model of a once-for-all student.

    Attributes:
        sub_model: which one.
        heldout_loss_before: before training; None without held-out text.
        heldout_loss_after: at the end.
        student_gmac: 10⁹ multiply-accumulates of a sequence of 128.
        export: its folder.
    """

    sub_model: str
    heldout_loss_before: float | None = None
    heldout_loss_after: float | None = None
    student_gmac: float
    export: str


class StudentSummary(Record):
    """The results of a student.

    Attributes:
        student: for people, as "MiniMoE 3L;192H 1,4E".
        heldout_loss_before: before training; None without held-out text.
        heldout_loss_after: at the end.
        student_gmac: 10⁹ multiply-accumulates of a sequence of 128.
        student_parameters: number of weights.
        export: its folder.
        sub_models: of a once-for-all student, by their names in the run.
    """

    student: str | None = None
    heldout_loss_before: float | None = None
    heldout_loss_after: float | None = None
    student_gmac: float | None = None
    student_parameters: int | None = None
    export: str | None = None
    sub_models: dict[str, SubModelSummary] = Field(default_factory=dict)


class Tradeoff(Record):
    """The best of several candidates: its name, its copy, and all λ-tradeoffs by student."""

    best: str
    export: str
    candidates: dict[str, dict[str, float]]


class SavingSummary(Record):
    """What the checkpoints of the last start cost, on rank 0.

    Attributes:
        saves: how many were begun.
        waited_seconds: for which steps stood still: copies, and waits for the save before.
        ending_seconds: for which the end waited for the last one.
        writing_seconds: for which they were written, beside training.
    """

    saves: int = 0
    waited_seconds: float = 0.0
    ending_seconds: float = 0.0
    writing_seconds: float = 0.0


class CacheSummary(Record):
    """The cache that a teacher's signals were read from.

    Attributes:
        folder: of the cache.
        dtype: float32, bfloat16 or int8.
        bytes: of its files.
        divergence: what the type costs: mean KL a row of relations, against the teacher's own.
    """

    folder: str
    dtype: str
    bytes: int
    divergence: float


class Summary(Record):
    """The summary of distilling.

    Attributes:
        teacher: folder or name.
        teacher_layout: how ranks hold it.
        teacher_ranks: that hold one copy.
        teacher_bytes_per_rank: of its weights.
        world_size: ranks.
        zero_stage: of DeepSpeed.
        expert_parallel_size: ranks that share out the experts.
        steps: of the whole run.
        sequences_per_second: of the last start, pauses left out.
        saving: what checkpoints cost.
        teacher_gmac: 10⁹ multiply-accumulates of a sequence of 128, of the whole teacher.
        students: by name.
        relation_cache: where the teacher's signals were kept.
        tradeoff: where the run has a λ.
        options: the resolved recipe.
    """

    teacher: str | None = None
    teacher_layout: str | None = None
    teacher_ranks: int | None = None
    teacher_bytes_per_rank: int | None = None
    world_size: int | None = None
    zero_stage: int | None = None
    expert_parallel_size: int | None = None
    steps: int | None = None
    sequences_per_second: float | None = None
    saving: SavingSummary | None = None
    teacher_gmac: float | None = None
    students: dict[str, StudentSummary]
    relation_cache: CacheSummary | None = None
    tradeoff: Tradeoff | None = None
    options: SavedRecipe = SavedRecipe()


class SparsificationSummary(Record):
    """The summary of sparsifying.

    Attributes:
        model: folder or name.
        world_size: ranks.
        batches: that were counted.
        difference_after_reordering: largest change of a final hidden state.
        gmac: 10⁹ multiply-accumulates of a sequence of 128, by sub-model.
        export: its folder.
    """

    model: str
    world_size: int
    batches: int
    difference_after_reordering: float
    gmac: Mapping[str, float]
    export: str

"""The cases of gpu_step.py."""

from dataclasses import dataclass, field, replace

SHAPES = {  # of teachers: layers, hidden size, heads
    "base": (12, 768, 12),
    "large": (24, 1024, 16),
    "minilm": (6, 384, 12),
    "tiny": (3, 64, 4),
}


@dataclass(frozen=True)
class Case:
    """What one process measures.

    Attributes:
        way: ours, published, limit or command.
        teacher: a shape of SHAPES.
        student: layers, hidden size.
        experts: of each student, attention's and feed-forward's.
        batch: samples.
        length: positions.
        precision: of students.
        teacher_dtype: auto or float8.
        padding: share of positions that are padding.
        compiles: run passes compiled and recorded.
    """

    way: str = "ours"
    teacher: str = "base"
    student: tuple[int, int] = (3, 384)
    experts: list[tuple[int, int]] = field(default_factory=lambda: [(1, 4)])
    batch: int = 128
    length: int = 128
    precision: str = "bf16"
    teacher_dtype: str = "auto"
    padding: float = 0.0
    compiles: bool = True

    @property
    def relation_heads(self) -> int:
        return 4 if self.teacher == "tiny" else 32

    @property
    def student_heads(self) -> int:
        return 4 if self.teacher == "tiny" else 12


OURS = Case()
LARGE = replace(OURS, teacher="large", student=(6, 384), experts=[(4, 4)], batch=64, length=256)
MINILM = replace(OURS, teacher="minilm", student=(3, 192), experts=[(1, 8)], length=64)
# In the order of what one wants to know first.
CASES = {
    "ours": OURS,
    "published": replace(OURS, way="published", precision="fp16"),
    "limit": replace(OURS, way="limit"),
    "plain": replace(OURS, experts=[(1, 1)]),
    "fp16": replace(OURS, precision="fp16"),
    "batch 32": replace(OURS, batch=32),
    "a third padding": replace(OURS, padding=1 / 3),
    "three students": replace(OURS, experts=[(1, 4)] * 3),
    "command": replace(OURS, way="command"),
    "1,64": replace(OURS, experts=[(1, 64)]),
    "float8 teacher": replace(OURS, teacher_dtype="float8"),
    "eager": replace(OURS, compiles=False),
    "batch 512": replace(OURS, batch=512),
    "large to 6L 4,4 at 256": LARGE,
    "large, published": replace(LARGE, way="published", precision="fp16"),
    "minilm to 3L 1,8 at 64": MINILM,
    "minilm, published": replace(MINILM, way="published", precision="fp16"),
    "4,1": replace(OURS, experts=[(4, 1)]),
    "fp32": replace(OURS, precision="fp32"),
    "published, batch 32": replace(OURS, way="published", precision="fp16", batch=32),
    "published, fp32": replace(OURS, way="published", precision="fp32"),
}

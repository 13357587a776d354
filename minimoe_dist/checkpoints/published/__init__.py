"""The published implementation's Hugging Face layout, both ways.

A published folder is a BERT folder with keys ``bert.…``; students that compare maps of their final
hidden states have ``self.{query,key,value}`` besides. One adapter for each kind of student says how
keys and configuration correspond (:mod:`.experts`: dense students and mixtures of experts;
:mod:`.elastic`: sparse and once-for-all students); :mod:`.folder` reads and writes.
"""

from .experts import (
    config_from_published,
    config_to_published,
    state_from_published,
    state_to_published,
)
from .folder import (
    Student,
    load_published,
    read_state,
    save_published,
    student_of,
)

__all__ = [
    "Student",
    "config_from_published",
    "config_to_published",
    "load_published",
    "read_state",
    "save_published",
    "state_from_published",
    "state_to_published",
    "student_of",
]

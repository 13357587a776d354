"""Checks names that become folders of a run: they stay inside it and fit any file system."""

import os
import re

from ..durable import PARTIAL, REPLACED

_MAX_BYTES = 100  # of 255 that a file system allows: suffixes come behind
_RESERVED = (PARTIAL, REPLACED)


def check_name(name: str) -> str:
    """Returns the name of a student or a stage, checked.

    Raises:
        ValueError: it cannot name a folder.
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
        raise ValueError(
            "must be letters, digits, dots, hyphens and underscores, a letter or digit first"
        )
    return _check_ending(name)


def check_suffix(suffix: str) -> str:
    """Returns the suffix of an export's folder, checked.

    Raises:
        ValueError: it would lead to another folder.
    """
    if not re.fullmatch(r"[\w.-]*", suffix):
        raise ValueError("must be letters, digits, dots, hyphens, underscores: it names a folder")
    return _check_ending(suffix)


def _check_ending(name: str) -> str:
    if len(os.fsencode(name)) > _MAX_BYTES:
        raise ValueError(f"must have at most {_MAX_BYTES} bytes: it names a folder")
    if name.endswith(_RESERVED):
        raise ValueError(f"must not end in {' or '.join(_RESERVED)}, which unfinished folders have")
    return name

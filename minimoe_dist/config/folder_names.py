"""Names that become folders of a run: they cannot lead out of it, and fit into any file system."""

import os
import re

from ..durable import PARTIAL, REPLACED

_MAX_BYTES = 100  # of 255 that a file system allows: suffixes come behind
_RESERVED = (PARTIAL, REPLACED)


def check_name(name: str) -> str:
    """The name of a student or a stage, as it is.

    Raises:
        ValueError: it is no name for a folder.
    """
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", name):
        raise ValueError(
            "must be letters, digits, dots, hyphens and underscores, a letter or digit first"
        )
    return _short(name)


def check_suffix(suffix: str) -> str:
    """What is put behind the name of an export's folder, as it is.

    Raises:
        ValueError: it would lead elsewhere.
    """
    if not re.fullmatch(r"[\w.-]*", suffix):
        raise ValueError("must be letters, digits, dots, hyphens, underscores: it names a folder")
    return _short(suffix)


def _short(name: str) -> str:
    if len(os.fsencode(name)) > _MAX_BYTES:
        raise ValueError(f"must have at most {_MAX_BYTES} bytes: it names a folder")
    if name.endswith(_RESERVED):
        raise ValueError(f"must not end in {' or '.join(_RESERVED)}, which unfinished folders have")
    return name

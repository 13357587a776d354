"""Reads small files that others wrote: JSON and YAML of bounded size, depth and numbers.

Such a file may be damaged, or made to do harm. Python's own readers follow brackets until its stack
ends, make numbers of any length and infinities, and wait for ever on a pipe that nobody writes to.
What reads them afterwards would have to expect all of that.
"""

import json
import math
import os
import re
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import IO, Any, NoReturn

import yaml

_MOST_BYTES = 1 << 24
_MOST_YAML_BYTES = 1 << 18  # its reader is slow, and no recipe has a tenth of that
# Files of models are not nested deeper than 10; what copies and prints values follows 100 safely.
_MOST_DEPTH = 100
_MOST_NODES = 20_000  # of YAML, where a short text may repeat a long part many times over
# Its scanner takes time that grows with the square of these, before anybody can count them.
_BRACKETS = re.compile(rf"[\[{{](?:\s*[\[{{]){{{_MOST_DEPTH}}}")
_MOST_DIGITS = 300  # more would be no float
_DIGITS_OF_64_BITS = 18
_KINDS: tuple[tuple[Callable[[int], bool], str], ...] = (
    (stat.S_ISDIR, "a folder, not a file"),
    (stat.S_ISFIFO, "a pipe, not a file"),
    (lambda mode: not stat.S_ISREG(mode), "a device or socket, not a file"),
)


class UnreadableError(ValueError):
    """Says in a few words why a file cannot be read as what it should be.

    Attributes:
        line: where, from 1; None where that is not known.
    """

    def __init__(self, reason: str, line: int | None = None) -> None:
        super().__init__(reason)
        self.line = line


def read_text(path: str | Path, most_bytes: int = _MOST_BYTES) -> str:
    """Reads a file of UTF-8 text.

    Args:
        path: the file.
        most_bytes: how large it may be.

    Raises:
        OSError: it is not there, or may not be read.
        UnreadableError: it is no file, too large, or no UTF-8.
    """
    try:
        return read_bytes(path, most_bytes).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UnreadableError(f"not UTF-8 text (byte {error.start})") from None


def read_bytes(path: str | Path, most_bytes: int = _MOST_BYTES) -> bytes:
    """Reads a file; raises as :func:`read_text`."""
    with open_file(path) as stream:
        _check_size(os.fstat(stream.fileno()).st_size, most_bytes)
        return stream.read()


def check_file(path: str | Path, most_bytes: int = _MOST_BYTES) -> None:
    """Refuses what a library is to read that would take it whole; raises as :func:`read_text`."""
    with open_file(path) as stream:
        _check_size(os.fstat(stream.fileno()).st_size, most_bytes)


def _check_size(size: int, most_bytes: int) -> None:
    if size > most_bytes:
        raise UnreadableError(f"{size:,} bytes, more than the {most_bytes:,} that may be")


def open_file(path: str | Path) -> IO[bytes]:
    """Opens a file to read; what is no file is refused at once, a pipe without its writer too.

    Raises:
        OSError: it is not there, or may not be read.
        UnreadableError: it is no file.
    """
    if "\0" in str(path):
        raise UnreadableError("no path, as it has a NUL character")
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(descriptor).st_mode
    for is_kind, description in _KINDS:
        if is_kind(mode):
            os.close(descriptor)
            raise UnreadableError(description)
    return open(descriptor, "rb")


def read_json(path: str | Path, most_bytes: int = _MOST_BYTES) -> Any:
    """Reads a file of JSON; raises as :func:`read_text` and :func:`parse_json`."""
    return parse_json(read_text(path, most_bytes))


def parse_json(
    text: str, unique: Callable[[list[tuple[str, Any]]], dict[str, Any]] | None = None
) -> Any:
    """Parses JSON whose numbers are finite, nested not deeper than a hundred brackets.

    Args:
        text: of the JSON; a byte order mark may stand before it.
        unique: makes an object of its members; None takes the last of each name.

    Raises:
        UnreadableError: it is no such JSON.
    """
    try:
        value = json.loads(
            text.removeprefix("\ufeff"),
            object_pairs_hook=unique,
            parse_int=_whole,
            parse_float=_finite,
            parse_constant=_refuse_constant,
        )
        _check_depth(value, lambda node: node.values() if isinstance(node, dict) else node)
    except json.JSONDecodeError as error:
        raise UnreadableError(error.msg, error.lineno) from None
    except RecursionError:
        raise _too_deep() from None
    return value


def parse_yaml(text: str, loader: type[yaml.SafeLoader] = yaml.SafeLoader) -> Any:
    """Parses YAML under the limits of :func:`parse_json`, repeated parts counted each time.

    Args:
        text: of the YAML.
        loader: a safe one.

    Raises:
        UnreadableError: it is no such YAML.
    """
    if len(text) > _MOST_YAML_BYTES:
        raise UnreadableError(f"{len(text):,} characters of YAML, more than {_MOST_YAML_BYTES:,}")
    if _BRACKETS.search(text):
        raise _too_deep()
    made = None
    try:
        made = loader(text)
        node = made.get_single_node()
        if node is None:
            return None
        _check_depth(node, _children, _MOST_NODES)
        value = made.construct_document(node)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        reason = getattr(error, "problem", None) or "not YAML"
        raise UnreadableError(" ".join(reason.split()), mark.line + 1 if mark else None) from None
    except RecursionError:
        raise _too_deep() from None
    except (ValueError, TypeError, AttributeError, LookupError, OverflowError) as error:
        if isinstance(error, UnreadableError):
            raise
        # Of a value that is written as a date or a number and is none, or of a wrong tag.
        raise UnreadableError(f"a value that is none of its type ({_short(error)})") from None
    finally:
        if made is not None:
            made.dispose()
    _check_depth(value, lambda node: node.values() if isinstance(node, dict) else node)
    return value


def _children(node: yaml.Node) -> Iterable[Any]:
    if isinstance(node, yaml.MappingNode):
        return (part for pair in node.value for part in pair)
    return node.value if isinstance(node, yaml.SequenceNode) else ()


def _check_depth(
    value: Any, members: Callable[[Any], Iterable[Any]], most_nodes: int | None = None
) -> None:
    """Walks through nested values, without a stack that could end; checks the numbers too.

    Raises:
        UnreadableError: they are nested too deep, repeat themselves without end, or hold a number
            that is too long or infinite.
    """
    level, count = [value], 0
    for _ in range(_MOST_DEPTH + 1):
        following: list[Any] = []
        for node in level:
            if isinstance(node, dict | list | set | yaml.Node):
                following.extend(members(node))
                if most_nodes is not None and count + len(following) > most_nodes:
                    raise UnreadableError(f"more than {most_nodes:,} values, with repetitions")
            elif isinstance(node, float) and not math.isfinite(node):
                _refuse_constant(str(node))
            elif isinstance(node, int) and node.bit_length() > 1000:
                raise UnreadableError(f"a number of more than {_MOST_DIGITS} digits")
        if not following:
            return
        level, count = following, count + len(following)
    raise _too_deep()


def is_whole_number(text: str) -> bool:
    """Tells whether a text is decimal digits alone, and no more than a 64-bit number may have."""
    return text.isdecimal() and len(text) <= _DIGITS_OF_64_BITS


def _whole(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise UnreadableError(f"a number of {len(digits):,} digits, more than {_MOST_DIGITS}")
    return int(digits)


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise UnreadableError(f"the number {digits[:20]}, too large for any use")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise UnreadableError(f"{name}, where a finite number should be")


def _too_deep() -> UnreadableError:
    return UnreadableError(f"brackets in brackets, deeper than {_MOST_DEPTH}")


def _short(error: BaseException) -> str:
    return " ".join((str(error) or type(error).__name__).split())[:80]


def shown(value: object) -> str:
    """Formats `value` for an error: short, and on one line."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"

"""JSON and YAML of others: bounded in size, depth and numbers, and refused in a few words."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from minimoe_dist.foreign import (
    UnreadableError,
    open_file,
    parse_json,
    parse_yaml,
    read_json,
    read_text,
)


def laughs(first: str, following: str) -> str:
    """YAML of a few lines whose last value repeats the first one ten thousand million times."""
    lines = [f"a0: &a0 {first}"]
    for number in range(1, 11):
        repeated = ", ".join([f"*a{number - 1}"] * 10)
        lines.append(f"a{number}: &a{number} {following.format(repeated)}")
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 10_000, "brackets in brackets"),
        ('{"a":' * 10_000, "brackets in brackets"),
        ("[" * 102 + "]" * 102, "brackets in brackets"),
        ("9" * 5000, "a number of 5,000 digits"),
        ("-" + "9" * 300, "a number of 301 digits"),
        ("[1e999]", "the number 1e999, too large"),
        ("NaN", "NaN, where a finite number"),
        ("-Infinity", "-Infinity, where a finite number"),
        ("", "Expecting value"),
        ('{"a": 1', "Expecting"),
        ('"\0"', "Invalid control character"),
    ],
)
def test_json_that_could_do_harm_is_refused(text: str, reason: str) -> None:
    with pytest.raises(UnreadableError, match=reason) as caught:
        parse_json(text)
    assert "\n" not in str(caught.value)


def test_json_says_its_line() -> None:
    with pytest.raises(UnreadableError) as caught:
        parse_json('{\n"a": 1,\n}')
    assert caught.value.line == 3


@pytest.mark.parametrize("text", ['{"a": [1, -2.5, "x"]}', "[" * 100 + "]" * 100, "9" * 300])
def test_other_json_is_read_as_it_is(text: str) -> None:
    assert str(parse_json(text)) == str(json.loads(text))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 10_000, "brackets in brackets"),
        ("[\n" * 10_000, "brackets in brackets"),
        ("- " * 10_000, "brackets in brackets"),
        ("&a [*a]", "brackets in brackets"),
        (laughs("[x, x, x]", "[{}]"), "more than 20,000 values"),
        (laughs("{x: 1}", "{{<<: [{}]}}"), "more than 20,000 values"),
        ("a: " + "1" * 5000, "a value that is none of its type"),
        ("a: 1" + ":59" * 600, "a number of more than 300 digits"),
        ("a: .inf", "inf, where a finite number"),
        ("a: .nan", "nan, where a finite number"),
        ("a: 2001-99-99", "a value that is none of its type"),
        ("a: !!timestamp x", "a value that is none of its type"),
        ("a: !!bool x", "a value that is none of its type"),
        ("a: !!python/object/apply:os.getpid []", "could not determine a constructor"),
        ("? [a]\n: b", "found unhashable key"),
        ("x" * 300_000, "300,000 characters of YAML"),
        ("\0", "not YAML"),
    ],
)
@pytest.mark.timeout(20)
def test_yaml_that_could_do_harm_is_refused(text: str, reason: str) -> None:
    with pytest.raises(UnreadableError, match=reason) as caught:
        parse_yaml(text)
    assert "\n" not in str(caught.value)


def test_other_yaml_is_read_as_it_is() -> None:
    assert parse_yaml("a: &x [1, 2.5]\nb: *x\nc: {d: null}") == {
        "a": [1, 2.5],
        "b": [1, 2.5],
        "c": {"d": None},
    }
    assert parse_yaml("") is None


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)


@pytest.mark.parametrize(
    ("make", "error", "reason"),
    [
        (Path.mkdir, UnreadableError, "a folder, not a file"),
        (make_pipe, UnreadableError, "a pipe, not a file"),
        (make_sparse, UnreadableError, "1,099,511,627,776 bytes, more than"),
        (lambda path: path.write_bytes(b"a\xff"), UnreadableError, r"not UTF-8 text \(byte 1\)"),
        (lambda path: path.symlink_to("nothing"), FileNotFoundError, "No such file"),
        (lambda path: path.symlink_to(path.name), OSError, "symbolic links"),
    ],
)
@pytest.mark.timeout(20)
def test_what_is_no_file_of_text_is_refused_at_once(
    make: Callable[[Path], Any], error: type[Exception], reason: str, tmp_path: Path
) -> None:
    make(tmp_path / "file")
    with pytest.raises(error, match=reason):
        read_json(tmp_path / "file")


def test_a_path_with_a_nul_character_and_a_device_are_refused() -> None:
    with pytest.raises(UnreadableError, match="NUL character"):
        read_text("a\0b")
    with pytest.raises(UnreadableError, match="a device or socket"):
        open_file("/dev/zero")

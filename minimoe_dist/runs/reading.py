"""Reads files that another version, another program or a damaged disk may have written."""

import errno
import json
import os
from pathlib import Path
from typing import IO, Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from .. import foreign
from ..durable import write_json
from ..errors import UserError, first_line

_MOST_DIGITS = 30  # of any count, seed or time that is written
_REMEDY = "run the command that wrote it again"


class Record(BaseModel):
    """A JSON object of a run's files, or a part of one.

    Keys that are not known are ignored. What was not given when it was made is not written.
    """

    model_config = ConfigDict(extra="ignore", frozen=True)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Reads the record in a file.

        Raises:
            UserError: the file is not there, or not what this record is written as.
        """
        return cls.of(parse_object(read_text(path), str(path)), str(path))

    @classmethod
    def find(cls, path: Path) -> Self | None:
        """Reads the record in a file; None where there is none that can be read."""
        try:
            return cls.read(path)
        except UserError:
            return None

    @classmethod
    def of(cls, values: dict[str, Any], where: str) -> Self:
        """Makes a record of a JSON object.

        Args:
            values: the object.
            where: file, or file and line, for errors.

        Raises:
            UserError: it lacks a key, or has a value of another type.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            problem = error.errors(include_url=False, include_input=False)[0]
            key = ".".join(map(str, problem["loc"]))
            reason = "is missing" if problem["type"] == "missing" else problem["msg"]
            raise UserError(f"{where}: {key}: {reason}: {_REMEDY}") from None

    def as_json(self) -> dict[str, Any]:
        """Returns the JSON object that is written: the fields that were given."""
        return self.model_dump(mode="json", exclude_unset=True)

    def write(self, path: Path) -> None:
        """Writes the record to a file, whole or not at all."""
        write_json(path, self.as_json())


def open_file(path: Path) -> IO[bytes]:
    """Opens a file to read from it; a pipe or a device in its place is never waited for.

    Raises:
        UserError: there is no such file, or it cannot be read.
    """
    try:
        return foreign.open_file(path)
    except FileNotFoundError:
        reason = "a link to nothing" if path.is_symlink() else "not there"
        raise UserError(f"{path}: {reason}: run the command that writes it") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}: move it away, or give another folder") from None
    except foreign.UnreadableError:
        reason = os.strerror(errno.EISDIR) if path.is_dir() else "is no file"
        raise UserError(f"{path}: {reason}: move it away, or give another folder") from None


def read_bytes(path: Path) -> bytes:
    """Reads a file's content.

    Raises:
        UserError: there is no such file, or it cannot be read.
    """
    try:
        with open_file(path) as file:
            return file.read()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}: move it away, or give another folder") from None


def read_text(path: Path) -> str:
    """Reads a file of UTF-8 text.

    Raises:
        UserError: there is none, or it is no such file.
    """
    try:
        return read_bytes(path).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}): {_REMEDY}") from None


def parse_object(text: str | bytes, where: str) -> dict[str, Any]:
    """Parses a JSON object.

    Raises:
        UserError: the text is none.
    """
    try:
        value = json.loads(text, parse_int=_bounded)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}:{error.lineno}: not JSON ({error.msg}): {_REMEDY}") from None
    # A number of too many digits, bytes that are no text; objects in objects without end.
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON ({first_line(error)}): {_REMEDY}") from None
    if not isinstance(value, dict):
        raise UserError(f"{where}:1: not a JSON object: give a file that a command wrote")
    return value


def _bounded(digits: str) -> int:
    """Parses a whole number that no arithmetic of ours can choke on."""
    value = int(digits)
    if len(digits) > _MOST_DIGITS:
        raise ValueError(f"a number of {len(digits):,} digits")
    return value

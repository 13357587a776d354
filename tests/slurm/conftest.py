"""What the tests of jobs share with those of commands."""

from tests.commands.conftest import workshop

__all__ = ["workshop"]

"""Turns refusals into lines, so that a dry run can name all that would stop a run."""

from collections.abc import Callable, Iterator

from ..errors import UserError


def problems_of(check: Callable[..., object], *arguments: object) -> Iterator[str]:
    """Yields what a check refuses, as one line; nothing where it refuses nothing.

    Args:
        check: function that raises UserError, or OSError for a path that the user named.
        arguments: arguments of the check.
    """
    try:
        check(*arguments)
    except (UserError, OSError) as error:
        yield " ".join(str(error).split())

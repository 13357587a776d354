"""Checks that go on after the first refusal, so that a dry run names all that would stop a run."""

from collections.abc import Callable, Iterator

from ..errors import UserError


def problems_of(check: Callable[..., object], *arguments: object) -> Iterator[str]:
    """What a check refuses, as one line; nothing where it does not.

    Args:
        check: raises UserError, or OSError of a path that the user named.
        arguments: of the check.
    """
    try:
        check(*arguments)
    except (UserError, OSError) as error:
        yield " ".join(str(error).split())

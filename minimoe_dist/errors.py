"""The exception for mistakes of the user, as opposed to faults of this program."""


class UserError(ValueError):
    """Says that a user's input cannot be used; the text is one line: option or file, and remedy.

    Commands end with it as their only words, and with status 2. Every other exception is a fault
    of this program or of the machine, and keeps its traceback.
    """


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message, or its class where it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]

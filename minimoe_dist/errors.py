"""What a user did wrong, as opposed to what this program did."""


class UserError(ValueError):
    """What a user gave cannot be used; the text is one line: the option or file, the remedy.

    Commands end with it as their only words, and with status 2. Every other exception is a fault
    of this program or of the machine, and keeps its traceback.
    """


def first_line(error: BaseException) -> str:
    """What an error says, in one line; its class where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]

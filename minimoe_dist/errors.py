"""What a user did wrong, as opposed to what this program did."""


class UserError(ValueError):
    """What a user gave cannot be used; the text is one line: the option or file, the remedy.

    Commands end with it as their only words, and with status 2. Every other exception is a fault
    of this program or of the machine, and keeps its traceback.
    """

"""The package's; beside exported code lies a copy of the file that defines it, by this name."""

from ..errors import UserError as UserError

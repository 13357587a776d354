"""Re-exports UserError; exported code has the file that defines it in this one's place."""

from ..errors import UserError as UserError

"""What all options classes of commands have in common."""

from collections.abc import Mapping
from typing import Any, get_args, get_origin

from pydantic import field_validator
from pydantic_core.core_schema import ValidationInfo

from ..schema import Section

POSITIONAL: dict[str, Any] = {"positional": True}


class CommandOptions(Section):
    """Base of a command's options: frozen, no unknown keys, lists also as text with commas.

    A field with ``json_schema_extra=POSITIONAL`` takes words that stand without a flag, in the
    order of the fields; a list takes all that are left. A field ``recipe`` is what ``--config``
    names (for other commands, ``--config`` names a YAML file of these options), and a field
    ``overrides`` takes ``key.path=value`` and the flags of ``distill``.
    """

    @field_validator("*", mode="before")
    @classmethod
    def _list_of_text(cls, value: Any, info: ValidationInfo) -> Any:
        annotation = cls.model_fields[str(info.field_name)].annotation
        takes_list = any(get_origin(one) is list for one in (annotation, *get_args(annotation)))
        if takes_list and isinstance(value, str):
            return [part.strip() for part in value.split(",") if part.strip()]
        return value


def is_positional(extra: Any) -> bool:
    """Whether a field's ``json_schema_extra`` makes it positional."""
    return isinstance(extra, Mapping) and bool(extra.get("positional"))

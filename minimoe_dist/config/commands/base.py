"""Base classes of the options of all commands."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

from pydantic import Field, field_validator
from pydantic_core.core_schema import ValidationInfo

from ..run import RunConfig
from ..schema import Section

Options = TypeVar("Options", bound="CommandOptions")
POSITIONAL: dict[str, Any] = {"positional": True}
# A step of a run whose checkpoint is meant.
SavedStep = Annotated[int, Field(ge=1)] | Literal["newest"]


class CommandOptions(Section):
    """Base of a command's options: frozen, no unknown keys, lists also as text with commas.

    A field with ``json_schema_extra=POSITIONAL`` takes arguments without a flag, in the order of
    the fields; a list takes all remaining ones. ``--config`` names a YAML file of these options.
    """

    def is_changed(self, name: str) -> bool:
        """Returns whether an option was given, and is not what it would be anyway."""
        default = type(self).model_fields[name].get_default(call_default_factory=True)
        return name in self.model_fields_set and getattr(self, name) != default

    def given_to(self, kind: type[Options]) -> Options:
        """Returns the options of another command among these, as far as they were given."""
        names = self.model_fields_set & kind.model_fields.keys()
        return kind.model_validate({name: getattr(self, name) for name in names})

    @field_validator("*", mode="before")
    @classmethod
    def _list_of_text(cls, value: Any, info: ValidationInfo) -> Any:
        annotation = cls.model_fields[str(info.field_name)].annotation
        takes_list = any(get_origin(kind) is list for kind in (annotation, *get_args(annotation)))
        if takes_list and isinstance(value, str):
            return [part.strip() for part in value.split(",") if part.strip()]
        return value


class RecipeOptions(CommandOptions):
    """Base of the options of commands that take a run, as ``--config RECIPE`` or ``RECIPE``.

    Every option of the run may follow it, as a flag or as ``key.path=value``.
    """

    recipe: str | None = Field(
        None, description="recipe of the run, see configs/recipes", json_schema_extra=POSITIONAL
    )
    overrides: list[str] = Field([], exclude=True)  # as they were written
    stages: list[RunConfig] = Field([], exclude=True)  # the run; one where the recipe has none

    @property
    def presets(self) -> Sequence[str]:
        """The settings of the run that the command makes, before those of the user."""
        return ()

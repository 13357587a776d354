"""A run: its options, filled in by its model type and held against each other."""

from collections.abc import Mapping
from typing import Any

from pydantic import model_validator
from pydantic_core import PydanticCustomError

from .checks import run_problems
from .model_types import defaults_of
from .schema import RunOptions


class RunConfig(RunOptions):
    """All options of one run, which fit each other."""

    @model_validator(mode="before")
    @classmethod
    def _fill_by_model_type(cls, values: Any) -> Any:
        """What a model type means for options that were left open."""
        if not isinstance(values, Mapping):
            return values
        filled = dict(values)
        for section, defaults in defaults_of(values.get("model_type")).items():
            given = values.get(section, [{}] if section == "students" else {})
            if isinstance(given, Mapping):
                filled[section] = {**defaults, **given}
            elif isinstance(given, list):
                filled[section] = [
                    {**defaults, **one} if isinstance(one, Mapping) else one for one in given
                ]
        return filled

    @model_validator(mode="after")
    def _check_across_sections(self) -> "RunConfig":
        problems = run_problems(self)
        if problems:
            text = "; ".join(f"{'.'.join(map(str, path))}: {words}" for path, words in problems)
            raise PydanticCustomError(
                "run_problems", "{text}", {"text": text, "problems": tuple(problems)}
            )
        return self

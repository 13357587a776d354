"""The options of a run, filled in by its model type and checked against each other."""

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
        """Fills in what the model type says of options that were not set."""
        if not isinstance(values, Mapping):
            return values
        filled = dict(values)
        for section, defaults in defaults_of(values.get("model_type")).items():
            options = values.get(section, [{}] if section == "students" else {})
            if isinstance(options, Mapping):
                filled[section] = {**defaults, **options}
            elif isinstance(options, list):
                filled[section] = [
                    {**defaults, **item} if isinstance(item, Mapping) else item for item in options
                ]
        return filled

    @model_validator(mode="after")
    def _check_across_sections(self) -> "RunConfig":
        problems = run_problems(self)
        if problems:
            text = "; ".join(f"{'.'.join(map(str, path))}: {message}" for path, message in problems)
            raise PydanticCustomError(
                "run_problems", "{text}", {"text": text, "problems": tuple(problems)}
            )
        return self

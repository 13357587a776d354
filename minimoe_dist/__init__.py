"""minimoe-dist: distils large encoders into small mixture-of-experts students.

Importing the package is cheap (no torch, no transformers). It makes `AutoConfig` and `AutoModel`
know the students of this package: at once where transformers is loaded already, otherwise as soon
as it loads its automatic classes.
"""

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

__version__ = "0.1.0"

_REGISTRATION = "minimoe_dist.models.registration"
# transformers' module -> the function of models/registration.py to call once it has loaded.
_REGISTER_AFTER = {
    "transformers.models.auto.configuration_auto": "register_configurations",
    "transformers.models.auto.modeling_auto": "register_models",
}


def _register(function_name: str) -> None:
    getattr(importlib.import_module(_REGISTRATION), function_name)()


class _RegisteringLoader(Loader):
    """Loads one of transformers' automatic-class modules, then registers our classes in it."""

    def __init__(self, wrapped: Loader, function_name: str) -> None:
        self._wrapped = wrapped
        self._function_name = function_name

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._wrapped.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._wrapped.exec_module(module)
        _register(self._function_name)


class _RegisteringFinder(MetaPathFinder):
    """Finds the two modules named in `_REGISTER_AFTER` and leaves every other to Python."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        function_name = _REGISTER_AFTER.get(fullname)
        if function_name is None:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _RegisteringLoader(spec.loader, function_name)
        return spec


def _announce_students() -> None:
    """Registers now what transformers has loaded, and arranges for what it loads later."""
    for module_name, function_name in _REGISTER_AFTER.items():
        if module_name in sys.modules:
            _register(function_name)
    if not any(isinstance(finder, _RegisteringFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _RegisteringFinder())


_announce_students()

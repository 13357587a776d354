"""Where the model is that a user names: a local folder, a hub's name, an installed package."""

import json
import os
import re
from importlib.util import find_spec
from pathlib import Path

from .errors import UserError


def resolve_model_path(path: str) -> str:
    """The folder or hub name of a model that a user names.

    ``package:NAME`` is the folder holding ``config.json`` inside the installed Python package NAME.
    A local folder must exist and hold ``config.json``; a hub name ("bert-base-uncased", "org/name")
    comes back unchanged.

    Raises:
        UserError: no such package or folder, or no configuration in it.
    """
    if path.startswith("package:"):
        return _packaged_model(path)
    local = Path(path).expanduser()
    if local.exists():
        if not (local / "config.json").is_file():
            raise UserError(f"{path}: no config.json in it; give a Hugging Face model folder")
        return str(local)
    owner, _, _ = path.partition("/")
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", path) or ("/" in path and os.path.isdir(owner)):
        raise UserError(f"{path}: no such model folder; give an existing one or package:NAME")
    return path


def _packaged_model(path: str) -> str:
    name = path.removeprefix("package:")
    spec = find_spec(name) if name.isidentifier() else None
    if spec is None:
        raise UserError(
            f"{path}: no installed Python package {name!r}; pip install {name.replace('_', '-')}, "
            "or give a model folder"
        )
    for root in map(Path, spec.submodule_search_locations or []):
        for config in sorted(root.rglob("config.json"), key=lambda file: len(file.parts)):
            if "model_type" in json.loads(config.read_text("utf-8")):
                return str(config.parent)
    raise UserError(f"{path}: that package holds no Hugging Face config.json; give a model folder")

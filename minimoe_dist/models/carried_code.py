"""The students' code, which goes along with their weights wherever they are saved.

``save_pretrained`` leaves beside the weights the modules that ``trust_remote_code=True`` needs, and
names their classes in ``config.json``. It does so here and where the classes were themselves loaded
from such a folder.
"""

import inspect
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from transformers.dynamic_module_utils import get_relative_imports

from .errors import UserError

# The module that all others follow from. Classes are named by it, so that whoever loads one has
# the code of all, and can pass it on.
_ENTRANCE = "task_heads"


def automatic_classes(names: str, config: str) -> dict[str, str]:
    """Returns the classes behind transformers' automatic ones, as "module.class".

    Args:
        names: what the classes of the models begin with.
        config: "module.class" of the configuration.
    """
    heads = ("Model", "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification")
    found = {"AutoConfig": config}
    for head in heads:
        found[f"Auto{'' if head == 'Model' else 'Model'}{head}"] = f"{_ENTRANCE}.{names}{head}"
    return found


class CarriesCode:
    """Saves code beside weights. Stands before ``PreTrainedModel`` among a class's bases.

    Attributes:
        carried_classes: of :func:`automatic_classes`.
    """

    carried_classes: ClassVar[Mapping[str, str]]
    config: Any

    def save_pretrained(
        self, save_directory: Any, is_main_process: bool = True, *arguments: Any, **options: Any
    ) -> None:
        """Saves as every model of transformers, and the code. Arguments are those of that.

        Raises:
            FileExistsError: the folder has a file of one of the code's names that no student left.
        """
        self.config.auto_map = dict(self.carried_classes)
        folder = Path(save_directory)
        if is_main_process and not folder.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            files = list(_files())
            _refuse_others(folder, files)
            for file in files:
                shutil.copy(file, folder)
        super().save_pretrained(  # type: ignore[misc]
            save_directory, is_main_process, *arguments, **options
        )

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoModel") -> None:
        """Does nothing: transformers would name only the class that it registers here."""


def _refuse_others(folder: Path, files: Sequence[Path]) -> None:
    """Refuses to write over files that are not a student's code."""
    config = folder / "config.json"
    if config.is_file() and f'"{_ENTRANCE}.' in config.read_text("utf-8", "replace"):
        return
    for file in files:
        there = folder / file.name
        if there.exists() and there.read_bytes() != file.read_bytes():
            raise FileExistsError(
                f"{there}: is there already, and is not a student's code, which has that name; "
                "choose another folder"
            )


def _files() -> Iterator[Path]:
    """Yields the files of the entrance and of all that is imported from beside it."""
    here = Path(__file__).parent
    names, seen = [_ENTRANCE], {_ENTRANCE}
    while names:
        name = names.pop()
        # In the package, the name belongs to a module that only hands the class on.
        is_errors = name == UserError.__module__.rpartition(".")[2]
        file = Path(inspect.getfile(UserError)) if is_errors else here / f"{name}.py"
        yield file
        found = sorted(set(get_relative_imports(file)) - seen)
        seen.update(found)
        names += found

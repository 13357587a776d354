"""Who may import whom: downward only, no circles, heavy packages only where they belong."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from minimoe_dist import cli

PACKAGE = Path(__file__).parent.parent / "minimoe_dist"
FLOORS = {
    "cli": 10,
    "commands": 9,
    "bench": 8,
    "recipes": 7,
    "doctor": 7,
    "slurm": 7,
    "train": 6,
    "preflight": 6,
    "checkpoints": 5,
    "planning": 5,
    "reporting": 5,
    "models": 4,
    "corpus": 4,
    "data": 3,
    "objectives": 3,
    "last_words": 3,
    "roll_call": 4,
    "model_description": 3,
    "process_group": 3,
    "rendezvous": 4,
    "config": 2,
    "model_paths": 2,
    "runtime": 2,
    "runs": 1,
    "waiting": 1,
    "packaged_archives": 1,
    "megatron_files": 1,
    "durable": 0,
    "kernels": 0,
    "foreign": 0,
    "pickled": 0,
    "tensor_errors": 0,
    "encoder_families": 0,
    "errors": -1,
    "exit_status": -1,
}
OUTSIDE = {"__init__", "__main__"}  # the package's own door, above all floors
LIGHT = (
    *("cli", "config", "durable", "errors", "exit_status", "foreign", "last_words"),
    *("encoder_families", "model_description", "model_paths", "packaged_archives"),
    *(
        "megatron_files",
        "pickled",
        "preflight",
        "process_group",
        "rendezvous",
        "roll_call",
        "runs",
        "runtime",
        "slurm",
        "waiting",
    ),
)
HEAVY = {
    *("torch", "transformers", "deepspeed", "megatron", "tensorboard", "tokenizers"),
    *("triton", "numba"),
}
MODULES = sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    """The room of a file: its folder under the package, or its own name."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def module_name(path: Path) -> str:
    """As it is imported; of a package's ``__init__`` the package's."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_module(name: str) -> bool:
    """Whether that is one of this package's files or folders."""
    path = PACKAGE.parent.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def imported(path: Path, at_import_time: bool = False) -> Iterator[str]:
    """Absolute names of the modules that a file imports (relative ones resolved)."""
    tree = ast.parse(path.read_text("utf-8"))
    package = ("minimoe_dist", *path.relative_to(PACKAGE).parts[:-1])
    skipped: set[ast.AST] = set()
    for node in ast.walk(tree):
        lazy = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or is_for_types(node)
        if at_import_time and (lazy or node in skipped):
            skipped.update(ast.iter_child_nodes(node))
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) + 1 - node.level]) if node.level else ""
            name = ".".join(filter(None, (base, node.module)))
            members = [f"{name}.{alias.name}" for alias in node.names]
            yield from members
            if not all(map(is_module, members)):
                yield name


def is_for_types(node: ast.AST) -> bool:
    """Whether a node is ``if TYPE_CHECKING:``."""
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def rooms_imported(path: Path) -> set[str]:
    names = (name.split(".") for name in imported(path))
    return {name[1] for name in names if name[0] == "minimoe_dist" and len(name) > 1} & set(FLOORS)


def test_every_module_is_in_a_known_room() -> None:
    assert {room_of(path) for path in MODULES} - set(FLOORS) - OUTSIDE == set()


@pytest.mark.parametrize("room", FLOORS)
def test_room_imports_only_from_below(room: str) -> None:
    wrong = {
        f"{path.relative_to(PACKAGE)} imports {other}"
        for path in MODULES
        if room_of(path) == room
        for other in rooms_imported(path) - {room}
        if FLOORS[other] >= FLOORS[room]
    }
    assert wrong == set()


def test_no_circle_between_files() -> None:
    """Imports of functions and for types count too: a file is read with all that it names."""
    files = {module_name(path): path for path in MODULES}
    graph = {name: (files.keys() & set(imported(path))) - {name} for name, path in files.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


def test_the_package_imports_itself_relatively() -> None:
    """One style; code that travels with an export needs this one."""
    wrong = {
        f"{path.relative_to(PACKAGE)} imports {node.module}"
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.ImportFrom) and node.level == 0
        if str(node.module).split(".")[0] == "minimoe_dist"
    }
    assert wrong == set()


def test_every_subcommand_is_one_module_of_commands_and_every_module_one(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert cli.main(["--help"]) == 0
    listed = capsys.readouterr().out.partition("commands:\n")[2].partition("\n\n")[0]
    modules = {path.stem for path in (PACKAGE / "commands").glob("*.py")} - {"__init__"}
    assert modules == {line.split()[0] for line in listed.splitlines()}


def test_only_train_imports_deepspeed() -> None:
    importers = {
        str(path.relative_to(PACKAGE))
        for path in MODULES
        if any(name.split(".")[0] == "deepspeed" for name in imported(path))
    }
    assert {name for name in importers if not name.startswith("train/")} == set()


def test_kernels_are_imported_only_where_they_run() -> None:
    """Triton is not everywhere: only `kernels` may need it, and nobody `kernels` at import time."""
    wrong = {
        f"{path.relative_to(PACKAGE)} imports {name}"
        for path in MODULES
        if room_of(path) != "kernels"
        for name in imported(path, at_import_time=True)
        if name.split(".")[0] == "triton"
        or (name.startswith("minimoe_dist.kernels.") and ".dispatch" not in name)
    }
    assert wrong == set()


def test_models_and_objectives_know_no_ranks() -> None:
    wrong = {
        str(path.relative_to(PACKAGE))
        for path in MODULES
        if room_of(path) in ("models", "objectives")
        and any(name.startswith("torch.distributed") for name in imported(path))
    }
    assert wrong == set()


@pytest.mark.parametrize("room", LIGHT)
def test_light_room_imports_nothing_heavy_at_import_time(room: str) -> None:
    wrong = {
        f"{path.relative_to(PACKAGE)} imports {name}"
        for path in MODULES
        if room_of(path) == room
        for name in imported(path, at_import_time=True)
        if name.split(".")[0] in HEAVY
    }
    assert wrong == set()


@pytest.mark.parametrize(
    "module",
    [
        "minimoe_dist",
        "minimoe_dist.cli",
        "minimoe_dist.commands.report",
        "minimoe_dist.commands.status",
        "minimoe_dist.commands.submit",
        "minimoe_dist.preflight.bench",
        "minimoe_dist.preflight.convert",
        "minimoe_dist.preflight.evaluate",
        "minimoe_dist.preflight.export",
        "minimoe_dist.preflight.finetune",
        "minimoe_dist.preflight.recipes",
        "minimoe_dist.slurm.job",
    ],
)
def test_import_loads_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print(sorted(set(sys.modules) & {HEAVY!r}))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (found.stdout.strip(), found.stderr) == ("[]", "")

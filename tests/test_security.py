"""What SECURITY.md promises of the code, and that each kind of malicious sample has its test."""

import ast
import pickle
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from minimoe_dist.config import ConfigError, load_run_config
from minimoe_dist.corpus.sources import choose_source
from minimoe_dist.corpus.sources.archives import UnreadableError
from minimoe_dist.corpus.streams import InputStream
from minimoe_dist.planning.machine import load_machine

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "SECURITY.md").read_text("utf-8")
CODE = [*(ROOT / "minimoe_dist").rglob("*.py"), *(ROOT / "tools").rglob("*.py")]
FORBIDDEN = {
    "os.system", "os.popen", "eval", "exec", "pickle.load", "pickle.loads", "pickle.Unpickler",
    "marshal.loads", "shelve.open", "yaml.unsafe_load", "yaml.full_load", "joblib.load",
    "shutil.unpack_archive", "pandas.read_pickle",
}  # fmt: skip


def calls() -> Iterator[tuple[str, str, dict[str, ast.expr]]]:
    """(file:line, what is called, named arguments) of the package and the tools."""
    for path in CODE:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call):
                named = {one.arg: one.value for one in node.keywords if one.arg}
                place = f"{path.relative_to(ROOT)}:{node.lineno}"
                yield place, ast.unparse(node.func), named


def is_true(value: ast.expr | None) -> bool:
    return isinstance(value, ast.Constant) and value.value is True


def test_nothing_is_called_that_runs_what_it_reads() -> None:
    assert [(place, name) for place, name, _ in calls() if name in FORBIDDEN] == []


def test_no_archive_is_unpacked_onto_the_disk() -> None:
    names = ("extractall", "extract")
    assert [place for place, name, _ in calls() if name.rpartition(".")[2] in names] == []


def test_weights_are_unpickled_with_restrictions_only() -> None:
    found = [(place, given) for place, name, given in calls() if name == "torch.load"]
    assert found
    assert [place for place, given in found if not is_true(given.get("weights_only"))] == []


def test_no_argument_trusts_what_is_read() -> None:
    wrong = ("allow_pickle", "trust_remote_code", "shell")
    assert [
        (place, name)
        for place, _, given in calls()
        for name in wrong
        if name in given and not (isinstance(given[name], ast.Constant) and not given[name].value)
    ] == []


def test_yaml_is_read_by_safe_loaders_only() -> None:
    """Loaders are YAML's safe one, a class made of it, or an argument that is declared as one."""
    safe, used = {"yaml.SafeLoader"}, []
    for path in CODE:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ClassDef):
                safe |= {node.name for base in node.bases if ast.unparse(base) in safe}
            elif isinstance(node, ast.arg) and node.annotation is not None:
                safe |= {node.arg} if "[yaml.SafeLoader]" in ast.unparse(node.annotation) else set()
            elif isinstance(node, ast.Call) and ast.unparse(node.func) == "yaml.load":
                used += [ast.unparse(one) for one in (*node.args[1:], *node.keywords)]
    # `foreign.parse_yaml` makes its documents with the loader itself.
    assert {name.removeprefix("Loader=") for name in used} <= safe
    assert "loader" in safe


def test_each_sample_that_the_page_names_has_its_test() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)
    assert len(named) >= 10
    for path, name in named:
        assert f"def {name}(" in (ROOT / path).read_text("utf-8"), f"{path}::{name}"


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self._trace = trace

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self._trace,)


@pytest.mark.parametrize("name", ["words.npy", "words.txt", "words.npz"])
def test_arrays_of_objects_are_refused_and_not_unpickled(name: str, tmp_path: Path) -> None:
    trace = tmp_path / "it_ran"
    array = np.array([Trap(trace), "a text"], dtype=object)
    with (tmp_path / name).open("wb") as file:
        np.savez(file, words=array) if name.endswith("z") else np.save(file, array)
    with pytest.raises((ValueError, UnreadableError), match="NumPy array"):
        choose_source(InputStream(str(tmp_path / name)))
    assert not trace.exists()


def test_that_array_would_have_run(tmp_path: Path) -> None:
    np.save(tmp_path / "words.npy", np.array([Trap(tmp_path / "it_ran")], dtype=object))
    np.load(tmp_path / "words.npy", allow_pickle=True)
    assert (tmp_path / "it_ran").exists()


@pytest.mark.parametrize("pickled", [0, 1, 2, 4, 5])
def test_a_pickle_among_texts_is_refused_and_not_unpickled(pickled: int, tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    path.write_bytes(pickle.dumps([Trap(tmp_path / "it_ran")] * 3, pickled))
    with pytest.raises((ValueError, UnreadableError)):
        choose_source(InputStream(str(path)))
    assert not (tmp_path / "it_ran").exists()


TAGS = [
    "!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path [{trace}]]",
    "!!python/object/new:os.system ['touch {trace}']",
    "!!python/name:os.system",
    "!!python/module:os",
]


@pytest.mark.parametrize("tag", TAGS)
@pytest.mark.parametrize(
    "read", [load_run_config, lambda path: load_machine(path, [])], ids=["recipe", "machine"]
)
def test_a_tag_of_yaml_makes_no_object(
    read: Callable[[str], object], tag: str, tmp_path: Path
) -> None:
    trace = tmp_path / "it_ran"
    path = tmp_path / "given.yaml"
    path.write_text(f"output_dir: {tag.format(trace=trace)}\n")
    with pytest.raises((ConfigError, ValueError), match=r"given\.yaml:1: .*correct the YAML"):
        read(str(path))
    assert not trace.exists()


@pytest.mark.parametrize("tag", TAGS)
def test_a_tag_on_the_command_line_is_text(tag: str, tmp_path: Path) -> None:
    trace = tmp_path / "it_ran"
    needed = ["--teacher_model_name_or_path=t", "--record_path_or_regex=c", "--output_dir=o"]
    with pytest.raises(ConfigError, match="model_suffix"):
        load_run_config(None, [*needed, f"model_suffix={tag.format(trace=trace)}"])
    assert not trace.exists()

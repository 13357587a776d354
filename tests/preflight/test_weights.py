"""Weights against config.json: what would not load is found by the files' headers, before torch."""

import json
import pickle
import subprocess
import sys
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from minimoe_dist.config.commands import ExportOptions
from minimoe_dist.errors import UserError
from minimoe_dist.model_description import FAMILIES, describe_model
from minimoe_dist.preflight.export import check as check_export
from minimoe_dist.preflight.weights import check_weights
from minimoe_dist.runtime import detect_launch
from tests.families import CONFIGURATIONS, ENCODERS, MASKED_LMS, SIZES

WORDS, LAST = "embeddings.word_embeddings.weight", "encoder.layer.1."
STATE = dict[str, torch.Tensor]


def check(folder: Path, *given: Any, **named: Any) -> None:
    model = describe_model(str(folder))
    assert model is not None
    check_weights("option", model, *given, **named)


def refused(folder: Path, *given: Any, **named: Any) -> str:
    with pytest.raises(UserError) as caught:
        check(folder, *given, **named)
    said = str(caught.value)
    assert said.startswith(f"option: {folder}") and "\n" not in said
    return said


def write(folder: Path, family: str = "bert", classes: Any = ENCODERS, **options: Any) -> Path:
    classes[family](CONFIGURATIONS[family](**SIZES)).save_pretrained(folder, **options)
    return folder


def pickled(folder: Path, change: Callable[[STATE], Any], archive: bool = True) -> Path:
    write(folder)
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    path = folder / "pytorch_model.bin"
    torch.save(change(state), path, _use_new_zipfile_serialization=archive)
    return folder


@pytest.mark.parametrize("classes", [ENCODERS, MASKED_LMS], ids=["alone", "under a head"])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_transformers_saves_is_taken(family: str, classes: Any, tmp_path: Path) -> None:
    folder = write(tmp_path, family, classes)
    check(folder)
    check(folder, 1, whole=False)


def test_weights_in_shards_are_taken_and_a_missing_one_is_named(tmp_path: Path) -> None:
    folder = write(tmp_path, max_shard_size="10KB")
    check(folder)
    parts = json.loads((folder / "model.safetensors.index.json").read_bytes())["weight_map"]
    lost = parts[f"{LAST}output.dense.weight"]
    (folder / lost).unlink()
    assert f"({lost}: no such file); copy it again" in refused(folder)
    check(folder, 1, whole=False)


@pytest.mark.parametrize("archive", [True, False])
def test_pickles_are_taken(archive: bool, tmp_path: Path) -> None:
    check(pickled(tmp_path, lambda state: state, archive))


def test_tensorflows_names_of_norms_are_taken(tmp_path: Path) -> None:
    def renamed(state: STATE) -> STATE:
        return {name.replace("LayerNorm.weight", "LayerNorm.gamma"): state[name] for name in state}

    check(pickled(tmp_path, renamed))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda state: {"state_dict": state},
            f"37 weights of a bert encoder are missing.*{WORDS};",
        ),
        (
            lambda state: {f"module.{name}": state[name] for name in state},
            rf"missing, the first is {WORDS} \(there is module\.embeddings",
        ),
        (
            lambda state: {**state, WORDS: state[WORDS][:50]},
            rf"{WORDS} is \[50, 24\], config.json s",
        ),
        (lambda state: list(state.values()), "37 weights of a bert encoder are missing"),
    ],
    ids=["inside another", "other names", "fewer rows", "no dictionary"],
)
def test_a_pickle_of_something_else_is_refused(
    change: Callable[[STATE], Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=words):
        check(pickled(tmp_path, change))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda state: {f"model.{name}": state[name] for name in state},
            "37 weights of a bert encoder are missing, the first is embeddings.word_embeddings."
            "weight (there is model.embeddings.LayerNorm.bias); give the checkpoint and the",
        ),
        (
            lambda state: {name: state[name] for name in state if not name.startswith(LAST)},
            "16 weights of a bert encoder are missing, the first is encoder.layer.1.attention.self."
            "query.weight; give the checkpoint and the configuration of one model",
        ),
        (
            lambda state: {**state, WORDS: state[WORDS][:50].clone()},
            "word_embeddings.weight is [50, 24], config.json says [60, 24]; give the checkpoint",
        ),
    ],
    ids=["other names", "no last layer", "fewer rows"],
)
def test_weights_of_another_configuration_are_refused(
    change: Callable[[STATE], STATE], words: str, tmp_path: Path
) -> None:
    path = write(tmp_path) / "model.safetensors"
    save_file(change(load_file(path)), path)
    assert words in refused(tmp_path)


def test_layers_behind_those_that_are_loaded_may_be_missing(tmp_path: Path) -> None:
    path = write(tmp_path) / "model.safetensors"
    behind = f"{LAST}attention.output.dense.weight"
    state = load_file(path)
    save_file({name: state[name] for name in state if name != behind}, path)
    check(tmp_path, 1)
    check(tmp_path, 2, whole=False)
    assert behind in refused(tmp_path, 2)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[: len(content) // 2],
        lambda content: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        lambda content: b"",
    ],
    ids=["half", "a pointer", "nothing"],
)
def test_a_damaged_file_is_refused(
    name: str, damage: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    folder = write(tmp_path) if name == "model.safetensors" else pickled(tmp_path, dict)
    path = folder / name
    path.write_bytes(damage(path.read_bytes()))
    assert f"has no weights that can be loaded ({name}: " in refused(folder)


def test_a_header_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    path = write(tmp_path) / "model.safetensors"
    with path.open("wb") as file:
        file.write((2**33).to_bytes(8, "little") + b"{")
        file.truncate(2**34)  # takes no room on the disk
    tracemalloc.start()
    assert "header too large" in refused(tmp_path)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


class Trap:
    """Touches a file when it is unpickled without restriction."""

    def __init__(self, trace: Path) -> None:
        self._trace = trace

    def __reduce__(self) -> Any:
        return Path.touch, (self._trace,)


@pytest.mark.parametrize("way", ["archive", "before archives", "bare"])
def test_a_pickle_that_runs_code_is_not_run(way: str, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    trap = Trap(trace)
    folder = pickled(tmp_path, lambda state: {**state, "trap": trap}, archive=way == "archive")
    if way == "bare":
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"trap": trap}, 2))
    words = r"has weights in a pickle of more than tensors \(pytorch_model.bin names \w+\.\w+\)"
    with pytest.raises(UserError, match=words):
        check(tmp_path)
    assert not trace.exists()


def test_names_that_are_parts_of_tensors_are_taken(tmp_path: Path) -> None:
    more = {"size": torch.Size([1]), "type": torch.bfloat16, "counts": Counter("ab")}
    check(pickled(tmp_path, lambda state: {**state, **more}))


def test_torch_is_not_imported(tmp_path: Path) -> None:
    code = f"""
import sys
from minimoe_dist.model_description import describe_model
from minimoe_dist.preflight.weights import check_weights
check_weights("option", describe_model({str(pickled(tmp_path, dict))!r}))
assert "torch" not in sys.modules
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_weights_that_are_not_whole_are_not_exported(tmp_path: Path) -> None:
    path = write(tmp_path / "model") / "model.safetensors"
    options = ExportOptions(source=str(tmp_path / "model"), output_dir=str(tmp_path / "out"))
    check_export(options, detect_launch({}))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"^source: .*model has no weights that can be loaded"):
        check_export(options, detect_launch({}))

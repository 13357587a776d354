"""Checkpoints whose files say what none can: refused in one line, at once, in no memory."""

import shutil
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from minimoe_dist.checkpoints.megatron.converting import to_hugging_face
from minimoe_dist.errors import UserError
from minimoe_dist.megatron_files.arguments import ModelOverrides
from minimoe_dist.megatron_files.finding import find_rank_files
from tests.checkpoints.megatron.maker import edit_rank, make_checkpoint, make_model

FILE = "release/mp_rank_00/model_optim_rng.pt"
WEIGHT = "encoder.layers.0.mlp.linear_fc1.weight"
POSITIONS = "embedding.position_embeddings.weight"
SECONDS = 10.0


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = make_model(num_hidden_layers=2)
    return make_checkpoint(tmp_path_factory.mktemp("saved") / "m", model, layout="core")


def refused(source: Path, tmp_path: Path) -> str:
    before = time.monotonic()
    with pytest.raises(UserError) as caught:
        to_hugging_face(source, tmp_path / "out", ModelOverrides(vocab_size=120), compare=False)
    assert time.monotonic() - before < SECONDS
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 1000
    return message


def nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(depth):
        value = {"a": value}
    return value


def containing_itself() -> dict[str, Any]:
    value: dict[str, Any] = {}
    value["self"] = value
    return value


@pytest.mark.parametrize("name", ["tensor_model_parallel_size", "pipeline_model_parallel_size"])
@pytest.mark.parametrize("size", [2**29, 2**40, 10**300])
def test_arguments_of_more_ranks_than_can_be_are_not_counted_out(
    name: str, size: int, saved: Path, tmp_path: Path
) -> None:
    source = Path(shutil.copytree(saved, tmp_path / "m"))
    edit_rank(source / FILE, lambda state: setattr(state["args"], name, size))
    said = refused(source, tmp_path)
    assert "is missing" in said if size == 2**29 else f"say {name} " in said


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("mp_rank_99999999999", "and 99,999,999,990 more is missing"),
        ("mp_rank_00_99999999999", "is there with and without|is missing"),
        ("mp_rank_" + "9" * 200, "is the folder of no rank"),
        ("mp_rank_03", "mp_rank_01, mp_rank_02 is missing"),
    ],
)
def test_a_rank_far_behind_the_others_is_not_counted_to(
    name: str, reason: str, tmp_path: Path
) -> None:
    for rank in ("mp_rank_00", name):
        (tmp_path / rank).mkdir()
        (tmp_path / rank / "model_optim_rng.pt").touch()
    before = time.monotonic()
    with pytest.raises(UserError, match=reason) as caught:
        find_rank_files(tmp_path)
    assert time.monotonic() - before < SECONDS
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "change",
    [
        lambda weight: torch.tensor(1.0),
        lambda weight: weight[:0],
        lambda weight: weight[None],
        lambda weight: weight.reshape(-1),
        lambda weight: weight[:-1],
        lambda weight: weight.int(),
        lambda weight: weight.to(torch.complex64),
        lambda weight: weight.to(torch.float8_e4m3fn),
        lambda weight: weight.to_sparse(),
        lambda weight: weight.to("meta"),
        lambda weight: torch.zeros(1, 1).expand(2**20, 2**20),
        lambda weight: torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8),
        lambda weight: weight * torch.nan,
        lambda weight: "text",
        lambda weight: [1.0],
        lambda weight: {"weight": weight},
    ],
)
@pytest.mark.parametrize("name", [WEIGHT, POSITIONS])
def test_what_is_no_weight_is_refused(
    name: str, change: Callable[[torch.Tensor], Any], saved: Path, tmp_path: Path
) -> None:
    source = Path(shutil.copytree(saved, tmp_path / "m"))
    edit_rank(
        source / FILE, lambda state: state["model"].update({name: change(state["model"][name])})
    )
    said = refused(source, tmp_path)
    assert name.split(".")[-2] in said or "bert.encoder.layer.0.intermediate.dense.weight" in said


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("args", value) for value in (7, "text", [1], True, torch.ones(2), (1, 2))),
        *(("model", value) for value in (7, "text", None, [1], torch.ones(2), {})),
        *(("checkpoint_version", value) for value in ("3", None, 10**400, torch.nan, [3])),
        ("model", {"language_model": nested(100)}),
        ("model", containing_itself()),
        ("model", {1: torch.ones(2), None: 3}),
        ("model", {"encoder.layers." + "9" * 5000 + ".mlp.linear_fc1.weight": torch.ones(2, 2)}),
        ("model", {"encoder.layers.999999.mlp.linear_fc1.weight": torch.ones(2, 2)}),
    ],
)
def test_what_is_no_part_of_a_checkpoint_is_refused(
    key: str, value: Any, saved: Path, tmp_path: Path
) -> None:
    source = Path(shutil.copytree(saved, tmp_path / "m"))
    edit_rank(source / FILE, lambda state: state.update({key: value}))
    refused(source, tmp_path)


def write_other_archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a", "b")


@pytest.mark.parametrize(
    "damage",
    [
        write_other_archive,
        lambda path: path.write_bytes(b"no archive"),
        *(
            lambda path, part=part: path.write_bytes(path.read_bytes()[: -part * 1000])
            for part in (1, 5, 20)
        ),
    ],
)
def test_what_is_no_file_of_a_rank_is_refused(
    damage: Callable[[Path], Any], saved: Path, tmp_path: Path
) -> None:
    source = Path(shutil.copytree(saved, tmp_path / "m"))
    damage(source / FILE)
    assert "model_optim_rng.pt" in refused(source, tmp_path)

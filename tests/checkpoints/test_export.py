"""Exports load with plain transformers, or with the code that they carry, and say the same."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertTokenizerFast

from minimoe_dist import durable
from minimoe_dist.checkpoints import export
from minimoe_dist.checkpoints.export import export_student, load_student
from minimoe_dist.models.build import build_student, student_config

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghij"]
MIXTURES = {"dense": (1, 1), "moe": (2, 4)}
NOISE = ("LOAD REPORT", "MISSING", "UNEXPECTED", "newly initialized", "Warning", "Traceback")

# Forbids the package, then loads a folder as its reader would.
_WITHOUT_US = "import sys; sys.modules['minimoe_dist'] = None\n"
_COMPARE = """
import sys, torch
from safetensors.torch import load_file
folder, given = sys.argv[1], load_file(sys.argv[2])
model = AutoModel.from_pretrained(folder, **options)
assert not model.training
inputs = {name: given[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
with torch.no_grad():
    hidden = model(**inputs).last_hidden_state
mask = inputs["attention_mask"].bool()
print(type(model).__name__, (hidden - given["hidden"])[mask].abs().max().item())
"""


def make_student(moe, seed=0):
    base = BertConfig(vocab_size=len(VOCABULARY), max_position_embeddings=24)
    sizes = {"layers": 2, "hidden": 24, "heads": 4, "experts": moe, "num_relation_heads": 4}
    return build_student(student_config(base, **sizes), seed).eval()


def make_inputs():
    mask = torch.arange(12) < torch.tensor([12, 5, 8])[:, None]
    ids = torch.randint(5, 15, (3, 12), generator=torch.Generator().manual_seed(0)) * mask
    return {"input_ids": ids, "attention_mask": mask.long(), "token_type_ids": (ids % 2) * mask}


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    """A folder with both exports, made with a tokenizer, and what the students say."""
    folder = tmp_path_factory.mktemp("exports")
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY))
    tokenizer = BertTokenizerFast(vocab=str(folder / "vocab.txt"))
    for name, moe in MIXTURES.items():
        student = make_student(moe)
        export_student(student.config, student.state_dict(), folder / name, tokenizer)
        with torch.no_grad():
            hidden = student.bert(**make_inputs()).last_hidden_state
        save_file({**make_inputs(), "hidden": hidden}, folder / f"{name}.safetensors")
    return folder


def run_elsewhere(code, tmp_path, *arguments):
    """Runs code in a fresh interpreter, far from this source tree and from any cache."""
    environment = {
        "PATH": os.environ["PATH"],
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-I", "-c", code, *map(str, arguments)]
    result = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    return result


def says_the_same(result, class_name) -> None:
    name, difference = result.stdout.split()
    assert name == class_name
    assert float(difference) < 1e-5
    assert not [word for word in NOISE if word in result.stderr], result.stderr


def test_a_dense_export_loads_without_this_package(exports, tmp_path) -> None:
    imports = f"{_WITHOUT_US}from transformers import AutoModel\n"
    code = f"{imports}options = {{'add_pooling_layer': False}}{_COMPARE}"
    result = run_elsewhere(code, tmp_path, exports / "dense", exports / "dense.safetensors")
    says_the_same(result, "BertModel")


def test_a_pooler_that_nobody_trained_is_missing_and_told_so(exports, tmp_path) -> None:
    code = f"{_WITHOUT_US}from transformers import AutoModel\noptions = {{}}{_COMPARE}"
    result = run_elsewhere(code, tmp_path, exports / "dense", exports / "dense.safetensors")
    told = [line.split()[0] for line in result.stderr.splitlines() if "| MISSING" in line]
    assert sorted(told) == ["pooler.dense.bias", "pooler.dense.weight"]


@pytest.mark.parametrize(
    "imports",
    ["import minimoe_dist.models.auto\nfrom transformers import AutoModel",
     "from transformers import AutoModel\nimport minimoe_dist.models.auto"],
    ids=["package first", "transformers first"],
)  # fmt: skip
def test_an_export_with_experts_loads_after_importing_the_package(
    imports, exports, tmp_path
) -> None:
    code = f"{imports}\noptions = {{}}{_COMPARE}"
    result = run_elsewhere(code, tmp_path, exports / "moe", exports / "moe.safetensors")
    says_the_same(result, "MiniMoeModel")


def test_an_export_with_experts_loads_by_its_own_code(exports, tmp_path) -> None:
    imports = "from transformers import AutoConfig, AutoModel\n"
    alone = "config = AutoConfig.from_pretrained(sys.argv[1], trust_remote_code=True)\n"
    alone += "assert config.feedforward_experts == 4 and config.hidden_size == 24\n"
    code = f"{_WITHOUT_US}{imports}{alone}options = {{'trust_remote_code': True}}{_COMPARE}"
    result = run_elsewhere(code, tmp_path, exports / "moe", exports / "moe.safetensors")
    says_the_same(result, "MiniMoeModel")


def test_the_configuration_alone_loads_after_importing_the_package(exports) -> None:
    from minimoe_dist.models.auto import AutoConfig

    config = AutoConfig.from_pretrained(exports / "moe")
    assert (config.attention_experts, config.feedforward_experts) == (2, 4)


@pytest.mark.parametrize("name", MIXTURES)
def test_the_tokenizer_comes_along(name, exports) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(exports / name)
    assert tokenizer("a c")["input_ids"] == [2, 5, 7, 3]


@pytest.mark.parametrize("name", MIXTURES)
def test_an_export_goes_on_as_a_student(name, exports) -> None:
    student, again = make_student(MIXTURES[name]), load_student(exports / name)
    assert not again.training
    state = again.state_dict()
    for key, value in student.state_dict().items():
        assert torch.equal(state[key], value), key
    signals, wanted = again(**make_inputs()).signals, student(**make_inputs()).signals
    assert all(torch.equal(a, b) for a, b in zip(signals, wanted, strict=True))


def test_two_exports_of_a_dense_student_are_the_same(exports, tmp_path) -> None:
    student = make_student((1, 1))
    torch.randn(5)
    export_student(student.config, student.state_dict(), tmp_path / "again")
    first, second = (
        load_file(folder / "model.safetensors")
        for folder in (exports / "dense", tmp_path / "again")
    )
    assert first.keys() == second.keys() and "pooler.dense.weight" not in first
    assert all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize("moe", MIXTURES.values(), ids=MIXTURES)
def test_exporting_leaves_the_student_and_torchs_generator_as_they_were(moe, tmp_path) -> None:
    student, state = make_student(moe), torch.get_rng_state()
    before = student.config.to_dict()
    export_student(student.config, student.state_dict(), tmp_path / "export")
    assert student.config.to_dict() == before
    assert torch.equal(torch.get_rng_state(), state)


def test_an_export_replaces_the_former_one_wholly(tmp_path) -> None:
    folder = tmp_path / "export"
    for moe in ((1, 4), (1, 1)):
        student = make_student(moe)
        export_student(student.config, student.state_dict(), folder)
    names = sorted(path.name for path in folder.iterdir())
    assert names == [".minimoe_dist", "config.json", "model.safetensors"]
    assert [p.name for p in tmp_path.iterdir()] == ["export"]


class _KilledError(BaseException):
    """Not an Exception: nothing may tidy up behind it, as behind SIGKILL."""


def killed(*arguments, **options):
    raise _KilledError


def export_killed_at(place, name, folder, monkeypatch):
    """Exports over a former export and is killed at a call; returns both students."""
    former, newer = make_student((1, 4)), make_student((1, 4), seed=1)
    export_student(former.config, former.state_dict(), folder)
    with monkeypatch.context() as patch, pytest.raises(_KilledError):
        patch.setattr(place, name, killed)
        export_student(newer.config, newer.state_dict(), folder)
    return former, newer


def is_in(folder, student) -> bool:
    state = load_student(folder).state_dict()
    return all(torch.equal(state[key], value) for key, value in student.state_dict().items())


@pytest.mark.parametrize(
    ("place", "name"),
    [
        (durable, "make_empty"),
        (export, "_save_with_code"),
        (durable, "share"),
        (durable, "flush_file"),
        (durable, "replace_folder"),
        (durable.shutil, "rmtree"),
    ],
)
def test_an_export_killed_before_it_has_its_name_leaves_the_former_one(
    place, name, tmp_path, monkeypatch
) -> None:
    former, newer = export_killed_at(place, name, tmp_path / "export", monkeypatch)
    assert is_in(tmp_path / "export", former)
    export_student(newer.config, newer.state_dict(), tmp_path / "export")
    assert is_in(tmp_path / "export", newer)
    assert [path.name for path in tmp_path.iterdir()] == ["export"]


def test_an_export_killed_once_it_has_its_name_is_there(tmp_path, monkeypatch) -> None:
    rmtree = durable.shutil.rmtree

    def killed_at_the_former(path, **options):
        if (tmp_path / "export").exists() and path.name == "export.replaced" and path.exists():
            killed()
        rmtree(path, **options)

    former, newer = make_student((1, 4)), make_student((1, 4), seed=1)
    export_student(former.config, former.state_dict(), tmp_path / "export")
    with monkeypatch.context() as patch, pytest.raises(_KilledError):
        patch.setattr(durable.shutil, "rmtree", killed_at_the_former)
        export_student(newer.config, newer.state_dict(), tmp_path / "export")
    assert is_in(tmp_path / "export", newer)


def test_an_export_killed_between_its_two_renames_is_put_back(tmp_path, monkeypatch) -> None:
    folder, former = tmp_path / "export", make_student((1, 4))
    export_student(former.config, former.state_dict(), folder)
    folder.rename(tmp_path / "export.replaced")
    (tmp_path / "export.partial").mkdir()

    def disk_full(*arguments):
        raise OSError("no space left on device")

    monkeypatch.setattr(durable, "make_empty", disk_full)
    with pytest.raises(OSError, match="no space left"):
        export_student(former.config, former.state_dict(), folder)
    assert is_in(folder, former)


@pytest.mark.parametrize("name", MIXTURES)
def test_exported_files_can_be_read_by_whom_the_folder_lets_in(name, exports) -> None:
    for path in (exports / name).iterdir():
        assert path.stat().st_mode & 0o777 == (exports / "vocab.txt").stat().st_mode & 0o777


def test_a_folder_without_a_configuration_is_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"config.json: missing; give a model's folder"):
        load_student(tmp_path)


def test_an_export_that_lacks_a_weight_is_refused(tmp_path) -> None:
    student = make_student((1, 4))
    export_student(student.config, student.state_dict(), tmp_path / "export")
    path = tmp_path / "export" / "model.safetensors"
    weights = load_file(path)
    del weights["relation.key.bias"]
    save_file(weights, path)
    with pytest.raises(ValueError, match=r"Missing key.*relation.key.bias") as caught:
        load_student(tmp_path / "export")
    assert "\n" not in str(caught.value)


def test_the_configuration_names_the_code_beside_it(exports) -> None:
    config = json.loads((exports / "moe" / "config.json").read_text())
    for reference in config["auto_map"].values():
        assert (exports / "moe" / f"{reference.split('.')[0]}.py").is_file()

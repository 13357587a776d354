"""The command line: its grammar, its refusals, what it leaves unloaded."""

import errno
import gc
import os
import resource
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import yaml

from minimoe_dist import __version__, cli
from minimoe_dist.commands import report
from minimoe_dist.config import load_run_config
from minimoe_dist.data.indexed_writing import IndexedCorpusWriter
from minimoe_dist.errors import UserError
from tests.model_folders import write_model

BERT = {
    "model_type": "bert",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "max_position_embeddings": 128,
    "vocab_size": 100,
}


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DS_ACCELERATOR", "CUDA_VISIBLE_DEVICES", "TORCH_GLOO_LAZY_INIT"):
        monkeypatch.setenv(name, "0")
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


def write_teacher(folder: Path, **changes: Any) -> Path:
    return write_model(folder, {**BERT, **changes})


def write_corpus(prefix: Path, largest_id: int = 9) -> Path:
    with IndexedCorpusWriter(str(prefix), vocab_size=1000) as writer:
        for _ in range(2):
            writer.add_document([np.array([1, 2, largest_id]), np.array([4, 5])])
    return prefix


def arguments(tmp_path: Path, *more: str, **teacher: Any) -> list[str]:
    return [
        "distill",
        f"--teacher_model_name_or_path={write_teacher(tmp_path / 'teacher', **teacher)}",
        f"--record_path_or_regex={write_corpus(tmp_path / 'corpus')}",
        f"--output_dir={tmp_path / 'out'}",
        "--use_cpu",
        *more,
    ]


def refusal(tokens: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert cli.main(tokens) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


@pytest.mark.parametrize("where", ["first", "last"])
@pytest.mark.parametrize("flag", [["--local_rank=1"], ["--local-rank", "1"]])
def test_local_rank_is_ignored_anywhere(
    where: str, flag: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokens = arguments(tmp_path, "--dry_run")
    assert cli.main(flag + tokens if where == "first" else tokens + flag) == 0
    assert "model_type: moebert_minilm" in capsys.readouterr().out


def test_dry_run_prints_a_run_that_reads_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments(tmp_path, "--dry_run", "--layer", "5")) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("# world size 1 on cpu, global batch 128")
    assert yaml.safe_load(printed)["students"][0]["layer"] == 5
    (tmp_path / "run.yaml").write_text(printed)
    assert load_run_config(str(tmp_path / "run.yaml")).students[0].layer == 5


def test_dry_run_says_what_would_stop_the_run_and_ends_with_two(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokens = arguments(tmp_path, "--dry_run", f"--record_path_or_regex={tmp_path / 'none'}")
    assert cli.main(tokens) == 2
    assert "# would stop: " in capsys.readouterr().out


def test_dry_run_leaves_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(arguments(tmp_path, "--dry_run"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--max_stps", "3"], "--max_stps is not an option of distill; did you mean --max_steps?"),
        (["trainin.max_steps=3"], "trainin.max_steps"),
        (["--layer"], "--layer: needs a value"),
        (["stray"], "stray: No such file or directory; give --config a recipe file"),
        (["training.max_steps=3", "x.yaml", "y.yaml"], "y.yaml: not an option of distill"),
        (["stages.a.layer=3"], "stages.a.layer: the run has no stages; give layer"),
        (["--hidden", "100"], "--hidden: 100"),
        (["--record_path_or_regex", "/no/corpus"], "/no/corpus"),
        (["--output_dir", "/dev/null/out"], "output_dir: /dev/null/out"),
        (["--teacher_model_name_or_path", "/no/teacher"], "/no/teacher: no such model folder"),
        (["--student_model_name_or_path", "/no/student"], "/no/student: no such model folder"),
        (["--relation_layer", "3"], "has 2 layers"),
        (["--max_length", "256"], "128 positions"),
        (["--num_relation_heads", "48"], "hidden size 64"),
        (["--expert_parallel_size", "2"], "1 processes"),
        (["--config", "/no/recipe.yaml"], "/no/recipe.yaml"),
    ],
)
def test_user_error_is_one_line_and_status_two(
    more: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert words in refusal(arguments(tmp_path, *more), capsys)


def test_truncated_corpus_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tokens = arguments(tmp_path)
    binary = tmp_path / "corpus.bin"
    binary.write_bytes(binary.read_bytes()[:-2])
    assert "corpus.bin" in refusal(tokens, capsys)


def test_corpus_of_another_vocabulary_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "vocabulary of 5 " in refusal(arguments(tmp_path, vocab_size=5), capsys)


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        (["distil"], "did you mean distill?"),
        (["demo", "--step", "3"], "did you mean --steps?"),
        (["demo", "--steps", "few"], "--steps: must be a whole number"),
    ],
)
def test_wrong_command_is_refused(
    tokens: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert words in refusal(tokens, capsys)


@pytest.mark.parametrize("tokens", [["--help"], ["distill", "-h"], ["demo", "--help"]])
def test_help_is_printed(tokens: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(tokens) == 0
    assert capsys.readouterr().out.startswith("usage: minimoe-dist")


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"minimoe-dist {__version__}\n"


def test_module_refuses_fast_without_torch() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "minimoe_dist", "distill", "--max_stps=1"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    found = subprocess.run(command, capture_output=True, text=True, env={**os.environ})
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert found.returncode == 2
    # The processor's time: by the clock, other tests would count too.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 5
    assert "did you mean --max_steps?" in found.stderr
    assert "| torch" not in found.stderr


def test_console_script_is_installed() -> None:
    script = Path(sys.executable).parent / "minimoe-dist"
    found = subprocess.run([script, "--version"], capture_output=True, text=True)
    assert found.stdout.startswith("minimoe-dist ")


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (ValueError("zip() argument 2 is longer than argument 1"), 70, "fault of the program"),
        (KeyError("loss"), 70, "fault of the program"),
        (AssertionError(), 70, "fault of the program"),
        (OSError(errno.EIO, "Input/output error", "metrics.jsonl"), 74, "start again to go on"),
        (TimeoutError("store"), 74, "start again to go on"),
        (FileNotFoundError(errno.ENOENT, "No such file", "x"), 74, "start again to go on"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_not_the_users_keeps_its_traceback_and_a_status_of_its_own(
    error: Exception,
    status: int,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    def in_the_middle(*given: object) -> int:
        raise error

    monkeypatch.setattr(report, "run", in_the_middle)
    assert cli.main(["report", str(tmp_path), "--output", str(tmp_path / "page.html")]) == status
    said = capsys.readouterr().err
    assert "Traceback" in said and "in_the_middle" in said
    assert words in said.splitlines()[-1]


def test_a_full_disk_is_one_line_and_a_reason_to_start_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def in_the_middle(*given: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device", "page.html")

    monkeypatch.setattr(report, "run", in_the_middle)
    assert cli.main(["report", str(tmp_path), "--output", str(tmp_path / "page.html")]) == 74
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "No space left on device: 'page.html': make room" in said


@pytest.mark.parametrize(
    ("part", "error"),
    [
        (report, UserError("--output: x: give y")),
        (cli, UserError("--output: x: give y")),
        (cli, FileNotFoundError(errno.ENOENT, "No such file", "x")),
    ],
    ids=["run", "check", "path"],
)
def test_what_is_the_users_is_one_line(
    part: ModuleType,
    error: Exception,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    def refuse(*given: object) -> int:
        raise error

    monkeypatch.setattr(part, "run" if part is report else "read_options", refuse)
    assert cli.main(["report", str(tmp_path), "--output", str(tmp_path / "page.html")]) == 2
    assert capsys.readouterr().err.splitlines() == [f"minimoe-dist: {error}"]


def test_a_reader_that_goes_away_is_no_error() -> None:
    command = f"{sys.executable} -m minimoe_dist distill --help | head -n 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.stdout.startswith("usage:") and done.stderr == ""


def test_heavy_modules_are_imported_without_looking_for_garbage(tmp_path, monkeypatch):
    (tmp_path / "heavy_module.py").write_text("import gc\nIS_ENABLED = gc.isenabled()\n")
    (tmp_path / "broken_module.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert gc.isenabled()
    assert not cli._import_heavy("heavy_module").IS_ENABLED
    assert gc.isenabled()
    with pytest.raises(ZeroDivisionError):
        cli._import_heavy("broken_module")
    assert gc.isenabled()
    gc.unfreeze()

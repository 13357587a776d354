"""``minimoe-dist submit`` up to sbatch: the job's script, the run's folder, refusals."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import yaml

from minimoe_dist import cli
from minimoe_dist.checkpoints.tasks import export_task_model, load_task_model
from minimoe_dist.config import load_run_config
from minimoe_dist.config.commands import SubmitOptions
from minimoe_dist.config.flags import known_flags
from minimoe_dist.data.tasks import Task
from minimoe_dist.durable import replaced
from minimoe_dist.slurm.script import directives
from tests.commands.support import Workshop


def test_no_option_hides_one_of_a_run() -> None:
    assert set(SubmitOptions.model_fields) & set(known_flags()) == set()


def dry_run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[str, str]:
    """The script and the YAML that would be submitted."""
    assert cli.main(["submit", *words, "--dry_run"]) == 0
    script, _, run = capsys.readouterr().out.partition("/run.yaml\nmodel_type")
    return script, "model_type" + run


def test_options_become_lines_of_the_script(
    workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = workshop.recipe(tmp_path / "run", parallel={"use_cpu": False})
    script, _ = dry_run(
        capsys, str(recipe), "--nodes", "2", "--gpus_per_node", "4", "--time", "2-00:00:00",
        "--partition", "gpu", "--account", "us", "--signal_seconds", "600",
        "--sbatch", "constraint=a100,exclusive", "training.per_device_train_batch_size=1",
    )  # fmt: skip
    found = directives(script)
    assert found == {
        "job-name": "run",
        "nodes": "2",
        "ntasks-per-node": "4",
        "gpus-per-node": "4",
        "time": "2-00:00:00",
        "signal": "USR1@600",
        "requeue": "",
        "open-mode": "append",
        "output": f"{tmp_path / 'run'}/slurm-%j.out",
        "partition": "gpu",
        "account": "us",
        "constraint": "a100",
        "exclusive": "",
    }
    assert f"set -- {tmp_path / 'run'}/submissions/1/run.yaml\n" in script
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "lines"),
    [
        (["--gpus_per_node", "a100:2"], {"gpus-per-node": "a100:2", "ntasks-per-node": "2"}),
        (["--gres", "gpu:a100:2"], {"gres": "gpu:a100:2", "ntasks-per-node": "2"}),
        (["--sbatch", "gres=gpu:2"], {"gres": "gpu:2", "ntasks-per-node": "2"}),
        (
            ["--gpus_per_task", "1", "--tasks_per_node", "2"],
            {"gpus-per-task": "1", "ntasks-per-node": "2"},
        ),
        (
            ["--gres", "gpu:2", "--tasks_per_node", "1"],
            {"gres": "gpu:2", "ntasks-per-node": "1"},
        ),
    ],
    ids=["typed", "gres", "free", "task", "one task"],
)
def test_gpus_may_be_asked_for_in_every_way(
    words: list[str],
    lines: dict[str, str],
    workshop: Workshop,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = workshop.recipe(tmp_path / "run", parallel={"use_cpu": False})
    found = directives(dry_run(capsys, str(recipe), *words)[0])
    assert {name: found.get(name) for name in lines} == lines
    # Two ranks a node, which expert parallelism over two wants.
    assert cli.main(["submit", str(recipe), *words, "--expert_parallel_size=4", "--dry_run"]) == 2
    assert "does not divide the 2 processes" in capsys.readouterr().err


def test_gpus_asked_for_twice_are_refused(
    workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = workshop.recipe(tmp_path / "run", parallel={"use_cpu": False})
    words = ["--gpus_per_node", "2", "--gres", "gpu:2"]
    assert cli.main(["submit", str(recipe), *words, "--dry_run"]) == 2
    assert "--gpus_per_node and --gres: say the same in two ways" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--gpus_per_task", "1"], "of how many tasks? give --tasks_per_node"),
        (["--gpus_per_task", "2", "--tasks_per_node", "2"], "a task trains on one"),
    ],
)
def test_gpus_of_tasks_must_be_one_of_each(
    words: list[str],
    said: str,
    workshop: Workshop,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = workshop.recipe(tmp_path / "run", parallel={"use_cpu": False})
    assert cli.main(["submit", str(recipe), *words, "--dry_run"]) == 2
    assert said in capsys.readouterr().err


def test_a_container_starts_python_in_the_tasks(
    workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = workshop.recipe(tmp_path / "run")
    command = "apptainer exec --nv /shared/minimoe-dist.sif python3"
    script, _ = dry_run(capsys, str(recipe), "--nodes", "2", "--python", command)
    assert f"export MINIMOE_PYTHON='{command}'\n" in script
    assert f"export MINIMOE_JOB_PYTHON={sys.executable}\n" in script


def test_the_job_reads_the_resolved_run(
    workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, changes = workshop.recipe(tmp_path / "run"), ["--max_steps=7", "seed=5"]
    _, text = dry_run(capsys, str(recipe), "--nodes", "2", *changes)
    (tmp_path / "resolved.yaml").write_text(text)
    resolved = load_run_config(str(tmp_path / "resolved.yaml"))
    assert resolved == load_run_config(str(recipe), changes)


def test_of_a_chain_the_finished_stages_are_left_out(
    workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("first", "second", "third")
    students = [{"layer": 1, "hidden": 16, "heads": 2}]
    recipe = workshop.recipe(
        tmp_path / "run",
        stages=[{"name": name, "students": students} for name in names],
        parallel={"expert_parallel_size": 1},
    )
    options = yaml.safe_load(dry_run(capsys, str(recipe))[1].partition("\n# ")[0])
    folder = tmp_path / "run" / "first"
    (folder / "export").mkdir(parents=True)
    with replaced(folder / "export" / "student") as aside:
        shutil.copytree(workshop.teacher, aside, dirs_exist_ok=True)
    told = {"students": {"student": {}}, "options": options}
    (folder / "summary.json").write_text(json.dumps(told))
    assert cli.main(["submit", str(recipe), "--dry_run"]) == 0
    said = capsys.readouterr().out
    assert said.count("#!/bin/bash") == 2 and "first/submissions" not in said
    assert said.count("--dependency='afterok:(the job of ") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--time", "6"], "--time: 6 leaves no time to train"),
        (["--time", "soon"], "--time: 'soon' is no time limit"),
        (["--sbatch", "-N"], "--sbatch: '-N' is no long option"),
        (["--nodes", "3"], "parallel.expert_parallel_size"),
        (["--command", "sparsify"], "model_type"),
        (["parallel.precision=fp16"], "'fp16' does not train on CPUs"),
        (["--record_path_or_regex", "/no/corpus"], "/no/corpus"),
        (["--tme", "1:00:00"], "did you mean --time?"),
    ],
)
def test_what_cannot_run_is_not_submitted(
    words: list[str],
    message: str,
    workshop: Workshop,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = workshop.recipe(tmp_path / "run")
    nodes = [] if "--nodes" in words else ["--nodes", "2"]
    assert cli.main(["submit", str(recipe), *nodes, *words, "--dry_run"]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_without_slurm_the_refusal_names_sbatch(
    workshop: Workshop,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))
    recipe = workshop.recipe(tmp_path / "run")
    assert cli.main(["submit", str(recipe), "--nodes", "2"]) == 2
    assert "sbatch: not found" in capsys.readouterr().err


def test_job_files_that_are_nowhere_are_named(
    workshop: Workshop,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("MINIMOE_SLURM", str(tmp_path))
    recipe = workshop.recipe(tmp_path / "run")
    assert cli.main(["submit", str(recipe), "--nodes", "2"]) == 2
    assert f"slurm/job.sh: not in {tmp_path}; set MINIMOE_SLURM" in capsys.readouterr().err


def task_files(folder: Path) -> Path:
    for name in ("train", "dev"):
        rows = "".join(f"word{n} word{n + 1}\t{n % 2}\n" for n in range(12))
        (folder / f"{name}.tsv").write_text("sentence\tlabel\n" + rows)
    return folder


def test_a_prediction_is_submitted_with_its_options(
    workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = Task("t", "classification", ("accuracy",), ("no", "yes"))
    source = load_task_model(str(workshop.teacher), task)
    model = export_task_model(source, source.copy(1).state_dict(), tmp_path / "model")
    (tmp_path / "texts").write_text("word1\n")
    output = tmp_path / "labels.jsonl"
    words = ["submit", "predict", str(model), "--batch_size", "16", "--gres", "gpu:1", "--dry_run"]
    texts, target = ["--input", str(tmp_path / "texts")], ["--output", str(output)]
    assert cli.main([*words, *texts, *target]) == 0
    script, _, text = capsys.readouterr().out.partition("/run.yaml\nsource")
    given = yaml.safe_load("source" + text)
    assert given == {
        "source": str(model), "input": texts[1], "output": str(output), "batch_size": 16,
    }  # fmt: skip
    found = directives(script)
    assert (found["job-name"], found["gres"]) == ("labels.jsonl.job", "gpu:1")
    assert "signal" not in found and found["output"].startswith(f"{output}.job/slurm-")
    assert f"set -- --config {output}.job/submissions/1/run.yaml\n" in script
    for wrong, said in (
        (texts, "--output: is missing; give the file that the predictions go to"),
        (target, "--input: is missing, and a job has no standard input; give a file"),
        ([*texts, *target, "--nodes", "2"], "--nodes: 2: predict is one process; use 1"),
        ([*texts, *target, "--max_length", "65"], "max_length: 65 is longer than the 64 positions"),
    ):
        assert cli.main([*words, *wrong]) == 2
        assert said in capsys.readouterr().err
    assert not output.with_name("labels.jsonl.job").exists()


def test_a_fine_tuning_is_submitted_with_its_options(
    workshop: Workshop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "submit", "finetune", str(workshop.teacher), "--task", "sst2", "--max_length", "16",
        "--data_dir", str(task_files(tmp_path)), "--output_dir", str(tmp_path / "tuned"),
        "--seeds", "1,2", "--grid", "--gres", "gpu:2", "--time", "1:00:00",
    ]  # fmt: skip
    assert cli.main([*words, "--dry_run"]) == 0
    script, _, text = capsys.readouterr().out.partition("/run.yaml\nmodel_name_or_path")
    given = yaml.safe_load("model_name_or_path" + text)
    assert given["seeds"] == [1, 2] and given["batch_sizes"] == [16, 32]
    assert not set(given) & {"nodes", "gres", "dry_run"}
    found = directives(script)
    assert (found["job-name"], found["gres"], found["ntasks-per-node"]) == ("tuned", "gpu:2", "2")
    assert f"set -- --config {tmp_path}/tuned/submissions/1/run.yaml\n" in script
    assert "launch finetune" in script
    assert not (tmp_path / "tuned").exists()
    assert cli.main([*words[:-1], "0:01:00"]) == 2
    assert "--time" in capsys.readouterr().err
    words[words.index("sst2")] = "sst3"
    assert cli.main([*words, "--dry_run"]) == 2
    assert "sst3" in capsys.readouterr().err

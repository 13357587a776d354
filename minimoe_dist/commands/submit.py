"""``minimoe-dist submit``: submits a run as a Slurm job, or a recipe's stages as a chain of jobs.

The shipped sbatch file of the command becomes the job's script: the options given here replace its
``#SBATCH`` lines, what follows them stays.
"""

import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import yaml

from ..config import ConfigError, RunConfig
from ..config.commands import (
    JobOptions,
    SubmitFinetuneOptions,
    SubmitOptions,
    SubmitPredictOptions,
)
from ..config.model_types import SPARSIFICATION
from ..durable import beside, write_text
from ..errors import UserError
from ..preflight.finetune import check_run as check_finetuning
from ..preflight.predict import check as check_prediction
from ..preflight.predict import output_of
from ..preflight.recipes import check_stages
from ..recipes.finished import is_finished
from ..runs.submissions import Submission, next_submission
from ..runtime import DeviceType, Launch
from ..slurm.facts import code_version, environment
from ..slurm.queue import SlurmError, execute, find_job
from ..slurm.reports import newest_job
from ..slurm.script import (
    count_gpus,
    gpus_per_node,
    parse_free_options,
    render,
    time_limit_seconds,
)

# Slurm may send the signal up to a minute early, and a start takes some time.
_SHORTEST_TRAINING_SECONDS = 120
_JOB_SUFFIX = ".job"  # of the folder beside a prediction, for what belongs to its job


@dataclass(frozen=True)
class _Job:
    """One job to submit.

    Attributes:
        command: of minimoe-dist.
        folder: of its run.
        yaml: its run.
        saves: whether it saves where it is told to stop, and says in its folder how far it is.
    """

    command: str
    folder: Path
    yaml: str
    saves: bool = True


def run(
    options: SubmitOptions | SubmitFinetuneOptions | SubmitPredictOptions, launch: Launch
) -> int:
    """Checks the run, then writes and submits its jobs; returns the exit status.

    Raises:
        ConfigError: an option, the recipe or a file that it names is wrong, or sbatch refuses.
    """
    _check_time_limit(options)
    _check_gpus(options)
    if isinstance(options, SubmitOptions):
        jobs = _jobs(options)
    elif isinstance(options, SubmitFinetuneOptions):
        jobs = [_finetuning_job(options)]
    else:
        jobs = [_prediction_job(options)]
    for job in jobs:
        _refuse_second_job(job.folder)
    after: str | None = None
    for job in jobs:
        after = _submit(job, options, after)
    if not jobs:
        print("every stage is finished; nothing to submit")
    return 0


def find_slurm_folder() -> Path:
    """Finds the folder of the sbatch files: $MINIMOE_SLURM, a clone's, or the installed one.

    Raises:
        ConfigError: they are in none of these places.
    """
    override = os.environ.get("MINIMOE_SLURM")
    places = [Path(__file__).parents[2] / "slurm", Path(sys.prefix) / "share/minimoe_dist/slurm"]
    for place in [Path(override)] if override else places:
        if (place / "job.sh").is_file():
            return place.absolute()
    searched = override or " nor ".join(map(str, places))
    raise ConfigError(f"slurm/job.sh: not in {searched}; set MINIMOE_SLURM to its folder")


def _check_time_limit(options: JobOptions) -> None:
    try:
        limit = time_limit_seconds(options.time)
    except UserError as error:
        raise ConfigError(str(error)) from None
    if isinstance(options, SubmitPredictOptions):
        return  # it saves nothing that it would need time for
    needed = options.signal_seconds + _SHORTEST_TRAINING_SECONDS
    if limit is not None and limit < needed:
        raise ConfigError(
            f"--time: {options.time} leaves no time to train before the signal that comes "
            f"{options.signal_seconds} s ahead of it; give at least {-(-needed // 60)} minutes or "
            "a smaller --signal_seconds"
        )


def _jobs(options: SubmitOptions) -> list[_Job]:
    """Returns the jobs to submit, in order, without finished stages of a chain."""
    stages = options.stages
    command = "sparsify" if stages[0].model_type == SPARSIFICATION else "distill"
    if options.command not in ("auto", command):
        raise ConfigError(f"--command: {options.command}, but the recipe is one to {command}")
    _refuse_problems(stages, options)
    remaining = [stage for stage in stages if len(stages) == 1 or not is_finished(stage)]
    return [_Job(command, Path(stage.output_dir), stage.to_yaml()) for stage in remaining]


def _finetuning_job(options: SubmitFinetuneOptions) -> _Job:
    finetuning = options.finetuning
    check_finetuning(finetuning, Launch(0, 1, 0, 1, "", 0, "slurm"))
    text = yaml.safe_dump(finetuning.as_json(), sort_keys=False, allow_unicode=True)
    return _Job("finetune", Path(finetuning.output_dir), text)


def _prediction_job(options: SubmitPredictOptions) -> _Job:
    predicting = options.predicting
    for name in ("nodes", "tasks_per_node", "processes_per_task"):
        if (getattr(options, name) or 1) > 1:
            raise ConfigError(f"--{name}: {getattr(options, name)}: predict is one process; use 1")
    gpus = _gpus_per_node(options)
    if gpus is not None and gpus > 1:
        raise ConfigError(f"predict: is one process, on one GPU at most, not {gpus}; ask for one")
    if predicting.output is None:
        raise ConfigError("--output: is missing; give the file that the predictions go to")
    if predicting.text is None and predicting.task is None and predicting.input in (None, "-"):
        raise ConfigError("--input: is missing, and a job has no standard input; give a file")
    check_prediction(predicting, Launch(0, 1, 0, 1, "", 0, "slurm"))
    output = output_of(predicting)
    assert output is not None
    values = predicting.model_dump(mode="json", exclude_unset=True)
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    return _Job("predict", beside(output, _JOB_SUFFIX), text, saves=False)


def _refuse_problems(stages: Sequence[RunConfig], options: SubmitOptions) -> None:
    """Refuses a run that would stop at its start, as far as that shows from here."""
    tasks, gpus = _tasks_per_node(options), _gpus_per_node(options)
    ranks_per_task = options.processes_per_task or (gpus or 1 if tasks == 1 else 1)
    ranks = options.nodes * tasks * ranks_per_task
    # The GPUs are on other nodes than this one.
    on_cpus = stages[0].parallel.use_cpu or gpus is None
    device: DeviceType = "cpu" if on_cpus else "cuda"
    launch = Launch(0, ranks, 0, ranks // options.nodes, "", 0, "slurm")
    check_stages(stages, launch, device, runs_elsewhere=options.python is not None)


def _tasks_per_node(options: JobOptions) -> int:
    return options.tasks_per_node or (
        1 if options.processes_per_task else _gpus_per_node(options) or 1
    )


def _gpus_per_node(options: JobOptions) -> int | None:
    return gpus_per_node(
        {
            "gpus-per-node": options.gpus_per_node,
            "gpus-per-task": options.gpus_per_task,
            "gres": options.gres,
            "ntasks-per-node": str(options.tasks_per_node or 1),
            **_free_options(options),
        }
    )


def _free_options(options: JobOptions) -> dict[str, str]:
    try:
        return parse_free_options(options.sbatch)
    except UserError as error:
        raise ConfigError(str(error)) from None


def _check_gpus(options: JobOptions) -> None:
    given = {
        "--gpus_per_node": options.gpus_per_node,
        "--gpus_per_task": options.gpus_per_task,
        "--gres": options.gres,
    }
    named = [name for name, value in given.items() if value is not None]
    if len(named) > 1:
        raise ConfigError(f"{' and '.join(named)}: say the same in two ways; give one of them")
    if options.gpus_per_task is None:
        return
    if options.tasks_per_node is None:
        raise ConfigError(
            f"--gpus_per_task: {options.gpus_per_task} of how many tasks? give --tasks_per_node"
        )
    if options.tasks_per_node > 1 and count_gpus(options.gpus_per_task) > 1:
        raise ConfigError(
            f"--gpus_per_task: {options.gpus_per_task} of several tasks a node; a task trains on "
            "one: give 1, or one task a node"
        )


def _refuse_second_job(folder: Path) -> None:
    """Refuses a second job of a run: the two would only refuse each other later."""
    former = newest_job(folder)
    job = find_job(former) if former else None
    if job is not None and job.is_alive:
        raise ConfigError(
            f"output_dir: {folder} has job {job.number}, which is {job.state}; scancel "
            f"{job.number} first, or choose another folder"
        )


def _sbatch_options(job: _Job, options: JobOptions, after: str | None) -> dict[str, str | None]:
    sbatch: dict[str, str | None] = {
        "job-name": options.job_name or job.folder.name,
        "nodes": str(options.nodes),
        "ntasks-per-node": str(_tasks_per_node(options)),
        "time": options.time,
        "signal": f"USR1@{options.signal_seconds}" if job.saves else None,
        "output": str(job.folder.absolute() / "slurm-%j.out"),
    }
    for name, value in (
        ("gpus-per-node", options.gpus_per_node),
        ("gpus-per-task", options.gpus_per_task),
        ("gres", options.gres),
        ("cpus-per-task", options.cpus_per_task),
        ("partition", options.partition),
        ("account", options.account),
    ):
        if value is not None:
            sbatch[name] = str(value)
    if after is not None:
        sbatch |= {"dependency": f"afterok:{after}", "kill-on-invalid-dep": "yes"}
    return sbatch | _free_options(options)


def _submit(job: _Job, options: JobOptions, after: str | None) -> str:
    """Writes a job's script and recipe and submits it, or prints both; returns its number."""
    slurm, submission = find_slurm_folder(), next_submission(job.folder)
    variables = {"MINIMOE_SLURM": str(slurm), "MINIMOE_PYTHON": options.python or sys.executable}
    if options.python is not None:
        variables["MINIMOE_JOB_PYTHON"] = sys.executable
    if options.processes_per_task is not None:
        variables["MINIMOE_PROCESSES_PER_TASK"] = str(options.processes_per_task)
    sbatch = _sbatch_options(job, options, after)
    shipped = (slurm / f"{job.command}.sbatch").read_text("utf-8")
    words = [str(submission.recipe)]
    if job.command in ("finetune", "predict"):
        words = ["--config", *words]
    script = render(shipped, sbatch, variables, words)
    if options.dry_run:
        print(f"# {submission.script}\n{script}\n# {submission.recipe}\n{job.yaml}")
        return f"(the job of {job.folder})"
    submission.path.mkdir(parents=True)
    write_text(submission.recipe, job.yaml)
    write_text(submission.script, script)
    try:
        answer = execute(["sbatch", "--parsable", str(submission.script)])
    except SlurmError as error:
        raise ConfigError(f"{submission.script}: {error}") from None
    number = answer.strip().partition(";")[0]
    log = str(sbatch["output"]).replace("%j", number)
    _record(options, number, job.command, log).write(submission.record)
    dependency = "" if after is None else f", after job {after}"
    print(f"submitted job {number}: {job.command} into {job.folder}{dependency}")
    print(f"  log     {log}\n  script  {submission.script}")
    if job.saves:
        print(f"  look    minimoe-dist status {shlex.quote(str(job.folder))}")
    return number


def _record(options: JobOptions, number: str, command: str, log: str) -> Submission:
    return Submission(
        time=datetime.now(UTC).isoformat(timespec="seconds"),
        recipe=getattr(options, "recipe", None),
        overrides=getattr(options, "overrides", []),
        options=options.model_dump(mode="json", exclude={"recipe"}),
        code=code_version(),
        environment=environment(),
        job=number,
        command=command,
        log=log,
    )

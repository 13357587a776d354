"""A tiny teacher, tiny corpora and runs of ``minimoe-dist distill`` on real processes.

Ranks are forked from the server of tests/distributed.py, which has imported torch and DeepSpeed
once: each runs the command line as its main program, with its own launch variables, standard error
and exit status, and starts in a fraction of a second. ``torchrun`` starts the same from nothing.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import load_file
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizer,
    MegatronBertConfig,
    MegatronBertModel,
    RobertaConfig,
    RobertaModel,
)

from minimoe_dist.corpus.tokenizing import describe_tokenizer, load_tokenizer
from minimoe_dist.data.indexed_writing import IndexedCorpusWriter
from tests.distributed import _context

VOCABULARY = 200
POISON = VOCABULARY - 1  # a token whose embedding is infinite in a poisoned teacher
DEADLINE = 120.0  # of what takes a second on a quiet machine


# By family: transformers' classes, and what differs from BERT's configuration.
FAMILIES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "bert": (BertConfig, BertModel, {}),
    "roberta": (RobertaConfig, RobertaModel, {"pad_token_id": 0, "type_vocab_size": 1}),
    "megatron-bert": (MegatronBertConfig, MegatronBertModel, {}),
}


def make_teacher(
    folder: Path,
    *,
    words: str = "word",
    unused: int = 0,
    poisoned: bool = False,
    family: str = "bert",
) -> Path:
    """A random encoder of two layers, hidden 32, with its tokenizer, of `unused` more tokens."""
    folder.mkdir(parents=True)
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokens = special + [f"{words}{index}" for index in range(VOCABULARY - len(special))]
    tokens += [f"[unused{index}]" for index in range(unused)]
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n")
    BertTokenizer(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    config_class, model_class, changes = FAMILIES[family]
    config = config_class(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        initializer_range=0.3,
        **changes,
    )
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = model_class(config)
    if poisoned:
        with torch.no_grad():
            model.embeddings.word_embeddings.weight[POISON] = torch.inf
    model.save_pretrained(folder)
    return folder


def make_corpus(
    prefix: Path, tokenizer: Path, *, seed: int = 1, documents: int = 200, poison: int = 0
) -> Path:
    """Documents of random sentences; `poison` of them are made of the token that may poison."""
    generator = np.random.default_rng(seed)
    record = describe_tokenizer(load_tokenizer(str(tokenizer)), tokenizer.name)
    poisonous = set(range(0, documents, max(1, documents // poison))) if poison else set()
    with IndexedCorpusWriter(str(prefix), VOCABULARY, tokenizer=record) as writer:
        for number in range(documents):
            sentences = []
            for _ in range(generator.integers(2, 9)):
                length = int(generator.integers(3, 10))
                ids = generator.integers(5, POISON, length)
                sentences.append(np.full(length, POISON) if number in poisonous else ids)
            writer.add_document(sentences)
    return prefix


@dataclass(frozen=True)
class Workshop:
    """What runs are made of; shared by tests, which write into folders of their own."""

    folder: Path
    teacher: Path
    train: Path
    heldout: Path

    def recipe(self, output_dir: Path, **sections: Any) -> Path:
        """A recipe of 30 steps beside its output folder; `sections` change its sections."""
        values: dict[str, Any] = {
            "output_dir": str(output_dir),
            "teacher": {"model_name_or_path": str(self.teacher)},
            "students": [{"layer": 1, "hidden": 16, "heads": 2, "moe": "1,4"}],
            "objective": {"num_relation_heads": 4},
            "data": {
                "record_path_or_regex": str(self.train),
                "heldout_path_or_regex": str(self.heldout),
                "max_length": 32,
            },
            "training": {
                "per_device_train_batch_size": 4,
                "per_device_eval_batch_size": 8,
                "learning_rate": 1e-2,
                "max_steps": 30,
                "log_interval": 1,
                "save_interval": 10,
                "eval_interval": 15,
                "eval_sequences": 16,
            },
            "parallel": {"expert_parallel_size": 2, "use_cpu": True, "timeout_seconds": 60},
        }
        for name, changes in sections.items():
            is_section = isinstance(changes, Mapping)
            values[name] = {**values.get(name, {}), **changes} if is_section else changes
        path = output_dir.with_suffix(".yaml")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(values))
        return path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _rank(arguments: list[str], environment: dict[str, str], log: str) -> None:
    """The main program of a forked rank."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ.update(environment)
    from minimoe_dist import cli

    sys.exit(cli.main(arguments))


@dataclass
class Ranks:
    """A started run: one forked process a rank."""

    processes: list[Any]
    logs: list[Path]
    output_dir: Path
    started: float = field(default_factory=time.monotonic)

    def signal(self, number: signal.Signals, *ranks: int) -> float:
        """Sends a signal to some ranks, without any to all; returns when."""
        for rank in ranks or range(len(self.processes)):
            with contextlib.suppress(ProcessLookupError):  # it came to its end meanwhile
                os.kill(self.processes[rank].pid, number)
        return time.monotonic()

    def wait(self, *ranks: int, seconds: float = DEADLINE) -> list[int]:
        """Waits for some ranks, without any for all, and returns their exit statuses."""
        deadline = time.monotonic() + seconds
        chosen = [self.processes[rank] for rank in ranks or range(len(self.processes))]
        for process in chosen:
            process.join(max(0.0, deadline - time.monotonic()))
        return [process.exitcode for process in chosen]

    def said(self) -> str:
        """What all ranks printed."""
        return "".join(log.read_text() for log in self.logs if log.exists())

    def until_step(self, step: int) -> None:
        """Waits until a step's record is written."""
        wait_for(lambda: step in losses(self.output_dir), lambda: self.said())

    def until_saved(self) -> None:
        """Waits until a checkpoint is finished, which is written while steps go on."""
        wait_for(lambda: bool(checkpoints(self.output_dir)), lambda: self.said())


@contextlib.contextmanager
def start(
    recipe: Path,
    *overrides: str,
    world_size: int = 2,
    environment: Mapping[str, str] | None = None,
    own: Mapping[int, str] | None = None,
    command: str = "distill",
) -> Iterator[Ranks]:
    """Starts a run on forked ranks; kills what is left of it at the end.

    Args:
        recipe: of the run.
        overrides: options of all ranks.
        world_size: number of ranks; one has no launch variables.
        environment: further variables, or others than the launch's.
        own: an option of some ranks alone.
        command: of the command line.
    """
    output_dir = Path(yaml.safe_load(recipe.read_text())["output_dir"])
    port = str(free_port())
    processes, logs = [], []
    for rank in range(world_size):
        variables = {"OMP_NUM_THREADS": "1"}
        if world_size > 1:
            variables |= {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(world_size),
                "LOCAL_WORLD_SIZE": str(world_size),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
            }
        variables |= environment or {}
        logs.append(output_dir.parent / f"{output_dir.name}.{port}.rank{rank}.log")
        logs[-1].unlink(missing_ok=True)  # of an earlier start that was given the same port
        more = [own[rank]] if own and rank in own else []
        arguments = [command, "--config", str(recipe), *overrides, *more]
        process = _context().Process(target=_rank, args=(arguments, variables, str(logs[-1])))
        process.start()
        processes.append(process)
    try:
        yield Ranks(processes, logs, output_dir)
    finally:
        for process in processes:
            process.kill()
            process.join()


def run(recipe: Path, *overrides: str, **options: Any) -> tuple[list[int], str]:
    """Runs to the end; returns the ranks' exit statuses and what they printed."""
    with start(recipe, *overrides, **options) as ranks:
        return ranks.wait(), ranks.said()


def finish(recipe: Path, *overrides: str, **options: Any) -> str:
    """Runs to the end, which must be a good one; returns what was printed."""
    statuses, said = run(recipe, *overrides, **options)
    assert set(statuses) == {0}, said
    return said


def torchrun(recipe: Path, *overrides: str, ranks: int = 2) -> list[str]:
    """The command that starts a run as a user would."""
    return [
        sys.executable, "-m", "torch.distributed.run", "--standalone",
        "--nproc-per-node", str(ranks), "-m", "minimoe_dist",
        "distill", "--config", str(recipe), *overrides,
    ]  # fmt: skip


def execute(command: Sequence[str], **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end, from nothing."""
    return subprocess.run(
        command,
        env=clean_environment() | environment,
        capture_output=True,
        text=True,
        timeout=240,
    )


def clean_environment() -> dict[str, str]:
    """This process's environment without what a launcher or an earlier test may have set."""
    dropped = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "DS_ACCELERATOR", "CUDA_VISIBLE_DEVICES")
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    return {**kept, "OMP_NUM_THREADS": "1"}


def wait_for(
    condition: Callable[[], bool], what: Callable[[], str], seconds: float = DEADLINE
) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what()
        time.sleep(0.01)


def records(output_dir: Path) -> list[dict[str, Any]]:
    """The whole lines of ``metrics.jsonl``."""
    path = output_dir / "metrics.jsonl"
    if not path.exists():
        return []
    lines = path.read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def losses(output_dir: Path) -> dict[int, Any]:
    """Step -> what every student's step gave, bit for bit."""
    return {one["step"]: one["students"] for one in records(output_dir) if "students" in one}


def heldout(output_dir: Path) -> dict[int, Any]:
    """Step -> held-out losses."""
    return {
        one["step"]: one["heldout_loss"] for one in records(output_dir) if "heldout_loss" in one
    }


def weights(output_dir: Path, student: str = "student") -> dict[str, torch.Tensor]:
    """The exported student's."""
    return load_file(output_dir / "export" / student / "model.safetensors")


def assert_same_run(one: Path, other: Path) -> None:
    """Two finished runs agree bitwise: every step, every evaluation, every weight."""
    assert losses(one) == losses(other)
    assert heldout(one) == heldout(other)
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def checkpoints(output_dir: Path) -> list[int]:
    """Steps of the finished checkpoints."""
    found = (output_dir / "checkpoints").glob("step_*")
    return sorted(int(one.name[5:]) for one in found if one.suffix == "")

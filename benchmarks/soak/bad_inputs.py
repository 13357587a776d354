"""The table of bad inputs: what is wrong, the command that meets it, and what must be said."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.commands import support
from tests.commands.support import Workshop

TOOLS = Path(__file__).parents[2] / "tools" / "preprocess"


@dataclass(frozen=True)
class Bench:
    """A folder with copies that may be damaged: a recipe, its teacher, its corpora."""

    folder: Path
    recipe: Path
    output_dir: Path
    teacher: Path
    train: Path
    heldout: Path

    @classmethod
    def set_up(cls, folder: Path, workshop: Workshop) -> "Bench":
        teacher, output_dir = folder / "teacher", folder / "run"
        shutil.copytree(workshop.teacher, teacher)
        for prefix in (workshop.train, workshop.heldout):
            for path in prefix.parent.glob(f"{prefix.name}.*"):
                shutil.copy2(path, folder / path.name)
        copy = Workshop(folder, teacher, folder / "train", folder / "heldout")
        recipe = copy.recipe(output_dir, parallel={"expert_parallel_size": 1})
        return cls(folder, recipe, output_dir, teacher, copy.train, copy.heldout)

    def command(self, bad: "BadInput") -> list[str]:
        """The words behind the interpreter."""
        words = [word.format(**vars(self)) for word in bad.words]
        if words[0].endswith(".py"):
            return [str(TOOLS / words[0]), *words[1:]]
        return ["-m", "minimoe_dist", *words]

    def change_recipe(self, **sections: Any) -> None:
        values = yaml.safe_load(self.recipe.read_text())
        for name, changes in sections.items():
            is_section = isinstance(changes, dict)
            values[name] = {**values.get(name, {}), **changes} if is_section else changes
        self.recipe.write_text(yaml.safe_dump(values))

    def change_config(self, **values: Any) -> None:
        path = self.teacher / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def nothing(bench: Bench) -> None:
    """Everything is as it should be but the words of the command."""


@dataclass(frozen=True)
class BadInput:
    """A bad input.

    Attributes:
        name: what is wrong.
        words: the command; folders of the bench by name.
        says: must be in the one line.
        prepare: makes it wrong.
        status: of the refusal; 1 where the command is there to find such inputs.
    """

    name: str
    words: tuple[str, ...]
    says: str
    prepare: Callable[[Bench], None] = field(default=nothing)
    status: int = 2


def distill(
    name: str, *words: str, says: str, prepare: Callable[[Bench], None] = nothing
) -> BadInput:
    return BadInput(name, ("distill", "--config", "{recipe}", *words), says, prepare)


def build(
    name: str, *words: str, says: str, prepare: Callable[[Bench], None] = nothing
) -> BadInput:
    given = (
        "build_indexed.py", "--input_dir", "{folder}/in", "--input_regex", "*", "--output_dir",
        "{folder}/out", "--tokenizer_name_or_path", "{teacher}",
    )  # fmt: skip

    def prepare_text(bench: Bench) -> None:
        (bench.folder / "in").mkdir()
        (bench.folder / "in" / "a.format").write_text("word1 word2 word3 word4 .\n" * 20)
        prepare(bench)

    return BadInput(name, (*given, *words), says, prepare_text)


def cut(name: str, by: int = 2) -> Callable[[Bench], None]:
    def prepare(bench: Bench) -> None:
        path = bench.folder / name
        path.write_bytes(path.read_bytes()[:-by])

    return prepare


def write(name: str, content: bytes | str) -> Callable[[Bench], None]:
    def prepare(bench: Bench) -> None:
        path = bench.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)

    return prepare


def add(name: str, content: bytes) -> Callable[[Bench], None]:
    def prepare(bench: Bench) -> None:
        with (bench.folder / name).open("ab") as file:
            file.write(content)

    return prepare


def remove(name: str) -> Callable[[Bench], None]:
    def prepare(bench: Bench) -> None:
        path = bench.folder / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return prepare


def config(**values: Any) -> Callable[[Bench], None]:
    return lambda bench: bench.change_config(**values)


def recipe(**sections: Any) -> Callable[[Bench], None]:
    return lambda bench: bench.change_recipe(**sections)


def another_vocabulary(bench: Bench) -> None:
    other = support.make_teacher(bench.folder / "other", words="piece")
    support.make_corpus(bench.folder / "foreign", other, documents=9)


def not_readable_as_utf_8(bench: Bench) -> None:
    bench.recipe.write_bytes(b"output_dir: \xff\xfe\n")


def link_to_nothing(bench: Bench) -> None:
    bench.output_dir.symlink_to(bench.folder / "gone")


def without_vocabulary(bench: Bench) -> None:
    for name in ("vocab", "tokenizer"):
        for path in bench.teacher.glob(f"{name}*"):
            path.unlink()


def pickled_teacher(bench: Bench) -> None:
    (bench.teacher / "model.safetensors").unlink()
    runs = b"\x80\x02cos\nsystem\n(X\x04\x00\x00\x00truetR."
    (bench.teacher / "pytorch_model.bin").write_bytes(runs)


OPTIONS = (
    distill("a misspelt flag", "--max_stesp=3", says="did you mean --max_steps?"),
    distill("a misspelt path", "trainin.max_steps=3", says="trainin.max_steps"),
    distill("a flag without its value", "--layer", says="--layer"),
    distill("a word for a number", "--max_steps=many", says="--max_steps"),
    distill("a negative number of steps", "--max_steps=-1", says="--max_steps"),
    distill("no step at all", "--max_steps=0", says="--max_steps"),
    distill("a learning rate that is no number", "--learning_rate=nan", says="--learning_rate"),
    distill("an infinite learning rate", "--learning_rate=inf", says="--learning_rate"),
    distill("a hidden size that heads do not divide", "--hidden=15", says="--hidden"),
    distill("an unknown model type", "--model_type=moebert", says="--model_type"),
    distill("experts without a comma", "--moe=4", says="--moe"),
    distill("no expert", "--moe=1,0", says="--moe"),
    distill("a ZeRO stage that is none", "--zero_stage=4", says="zero_stage"),
    distill("an unknown precision", "parallel.precision=fp4", says="precision"),
    distill(
        "experts over more ranks than there are", "--expert_parallel_size=4", says="4 does not"
    ),
    distill("a stage where there are none", "stages.a.layer=3", says="stages.a.layer"),
    distill("a second recipe", "{recipe}", says="run.yaml"),
    distill("a recipe that is not there", "--config=/no/recipe.yaml", says="/no/recipe.yaml"),
    distill("heads of relations that divide nothing", "--num_relation_heads=3", says="heads 3"),
    distill("a layer that the teacher lacks", "--relation_layer=3", says="relation_layer: 3"),
    distill("texts longer than the positions", "--max_length=65", says="max_length: 65"),
    distill("a suffix out of the folder", "--model_suffix=/../../x", says="--model_suffix"),
    distill("an output folder in /proc", "--output_dir=/proc/runs", says="/proc/runs"),
    distill("an output folder below a file", "--output_dir=/dev/null/x", says="/dev/null/x"),
    distill("no checkpoint kept", "training.keep_checkpoints=0", says="keep_checkpoints"),
    distill("a time-out of nothing", "parallel.timeout_seconds=0", says="timeout_seconds"),
    BadInput("a misspelt command", ("distil",), "did you mean distill?"),
    BadInput("no recipe", ("distill",), "output_dir"),
)
RECIPES = (
    distill("a misspelt option of a recipe", says="max_steps",
            prepare=recipe(training={"max_stesp": 3})),
    distill("a section that is a list", says="training", prepare=recipe(training=[1, 2])),
    distill("an empty list of students", says="students", prepare=recipe(students=[])),
    distill("two students of one name", says="student",
            prepare=recipe(students=[{"layer": 1, "hidden": 16, "heads": 2}] * 2)),
    distill("a name out of its folder", says="name",
            prepare=recipe(students=[{"name": "../up", "layer": 1, "hidden": 16, "heads": 2}])),
    distill("YAML that does not close", says="run.yaml", prepare=write("run.yaml", "a: [1, 2\n")),
    distill("YAML that calls a function", says="run.yaml",
            prepare=write("run.yaml", "output_dir: !!python/object/apply:os.system ['true']\n")),
    distill("a key twice", says="run.yaml",
            prepare=write("run.yaml", "seed: 1\nseed: 2\noutput_dir: x\n")),
    distill("a recipe of other bytes", says="run.yaml", prepare=not_readable_as_utf_8),
    distill("an empty recipe", says="output_dir", prepare=write("run.yaml", "")),
    distill("a recipe that is a list", says="run.yaml", prepare=write("run.yaml", "- 1\n- 2\n")),
    distill("misspelt DeepSpeed JSON", "--deepspeed={folder}/ds.json", says="overlap_comm",
            prepare=write("ds.json", '{"zero_optimization": {"stage": 1, "overlap_com": true}}')),
    distill("DeepSpeed JSON that is cut off", "--deepspeed={folder}/ds.json", says="ds.json",
            prepare=write("ds.json", '{"zero_optimization": {')),
    distill("DeepSpeed JSON that is not there", "--deepspeed=/no/ds.json", says="/no/ds.json"),
    distill("an output folder that is a link to nothing", says="link to nothing",
            prepare=link_to_nothing),
    distill("an output folder that is a file", says="is no folder", prepare=write("run", "text")),
)  # fmt: skip
CORPORA = (
    distill("a corpus that is not there", "--record_path_or_regex=/no/corpus", says="/no/corpus"),
    distill("a pattern without a match", "--record_path_or_regex=/no/*", says="/no/*"),
    distill("a truncated .bin", says="train.bin", prepare=cut("train.bin")),
    distill("an over-long .bin", says="train.bin", prepare=add("train.bin", b"\0\0")),
    distill("an empty .bin", says="train.bin", prepare=write("train.bin", "")),
    distill("a truncated .idx", says="train.idx", prepare=cut("train.idx", 9)),
    distill("an empty .idx", says="train.idx", prepare=write("train.idx", "")),
    distill("an .idx of another kind", says="train.idx", prepare=write("train.idx", "text" * 99)),
    distill("a missing .idx", says="train", prepare=remove("train.idx")),
    distill("a missing .bin", says="train", prepare=remove("train.bin")),
    distill("a truncated held-out corpus", says="heldout.bin", prepare=cut("heldout.bin")),
    distill("a corpus of another vocabulary", "--record_path_or_regex={folder}/foreign",
            says="foreign: was built with the vocabulary of other", prepare=another_vocabulary),
    distill("a weight of a corpus that is negative", says="weight", prepare=recipe(
        data={"record_path_or_regex": [{"path": "train", "weight": -1}]})),
)  # fmt: skip
MODELS = (
    distill("a teacher that is not there", "--teacher_model_name_or_path=/no/teacher",
            says="/no/teacher"),
    distill("a package that is not installed", "--teacher_model_name_or_path=package:nowhere",
            says="nowhere"),
    distill("a teacher without config.json", says="teacher", prepare=remove("teacher/config.json")),
    distill("a teacher's config.json that is cut off", says="config.json",
            prepare=cut("teacher/config.json", 30)),
    distill("a teacher of another kind", says="teacher", prepare=config(model_type="gpt2")),
    distill("a teacher with code of its own", says="teacher", prepare=config(
        model_type="foreign", auto_map={"AutoModel": "foreign.Model"})),
    distill("a teacher without weights", says="teacher",
            prepare=remove("teacher/model.safetensors")),
    distill("a teacher's weights that are cut off", says="model.safetensors",
            prepare=cut("teacher/model.safetensors", 99)),
    distill("a teacher's weights that are text", says="model.safetensors",
            prepare=write("teacher/model.safetensors", "text" * 99)),
    distill("a teacher's weights of gigabytes of header", says="model.safetensors",
            prepare=write("teacher/model.safetensors", b"\xff\xff\xff\xff\0\0\0\0{}")),
    distill("a teacher's pickle that runs a command", says="pytorch_model.bin",
            prepare=pickled_teacher),
    distill("a teacher of another width than its weights", says="config.json says [200, 64]",
            prepare=config(hidden_size=64)),
    distill("a teacher without its vocabulary", says="tokenizer", prepare=without_vocabulary),
    distill("weights to start from of another size", "--initial_weights={teacher}",
            says="students.student.layer: 1, but"),
)  # fmt: skip
COMMANDS = (
    BadInput("fine-tuning: an unknown task",
             ("finetune", "{teacher}", "--task=sst3", "--data_dir={folder}",
              "--output_dir={output_dir}"), "did you mean sst2?"),
    BadInput("fine-tuning: no data",
             ("finetune", "{teacher}", "--task=sst2", "--data_dir=/no/data", "--max_length=32",
              "--output_dir={output_dir}"),
             "/no/data"),
    BadInput("fine-tuning: no model",
             ("finetune", "/no/model", "--task=sst2", "--data_dir={folder}",
              "--output_dir={output_dir}"), "/no/model"),
    BadInput("evaluating: nothing there", ("evaluate", "/no/run"), "/no/run"),
    BadInput("evaluating: an empty folder", ("evaluate", "{folder}/empty"), "empty",
             lambda bench: (bench.folder / "empty").mkdir()),
    BadInput("evaluating: a corpus that is not there",
             ("evaluate", "{teacher}", "--corpus=/no/corpus"), "/no/corpus"),
    BadInput("evaluating: one timed pass", ("evaluate", "{teacher}", "--repeats=1"), "repeats"),
    BadInput("exporting: nothing there", ("export", "/no/run", "--output_dir={output_dir}"),
             "/no/run"),
    BadInput("exporting: into the model itself", ("export", "{teacher}", "--output_dir={teacher}"),
             "teacher"),
    BadInput("converting: nothing there",
             ("convert", "--input=/no/model", "--output={output_dir}"), "/no/model"),
    BadInput("converting: a model of another kind",
             ("convert", "--input={teacher}", "--output={output_dir}"), "is of type bert"),
    BadInput("converting: an order of queries that is none",
             ("convert", "--input={teacher}", "--output={output_dir}", "--checkpoint_version=1.5"),
             "--checkpoint_version"),
    BadInput("planning: an unknown machine", ("plan", "{recipe}", "--machine=8xh1000"), "8xh1000"),
    BadInput("planning: no nodes", ("plan", "{recipe}", "--nodes=0"), "--nodes"),
    BadInput("submitting: a time limit that is none", ("submit", "{recipe}", "--time=soon"),
             "soon"),
    BadInput("submitting: a free option that is none",
             ("submit", "{recipe}", "--sbatch=$(touch x)", "--dry_run"), "sbatch"),
    BadInput("submitting: no nodes", ("submit", "{recipe}", "--nodes=0"), "--nodes"),
    BadInput("a report of nothing", ("report", "/no/run"), "/no/run"),
    BadInput("the status of nothing", ("status", "/no/run"), "/no/run"),
    BadInput("measuring no step", ("bench", "{recipe}", "--steps=0"), "--steps"),
    BadInput("sparsifying a teacher that is not there",
             ("sparsify", "{recipe}", "--moe=1,1", "--teacher_model_name_or_path=/no/teacher"),
             "/no/teacher"),
    BadInput("a demo of a few steps", ("demo", "--steps=few"), "--steps"),
)  # fmt: skip
TEXTS = (
    build("building: no such folder", "--input_dir=/no/text", says="/no/text"),
    build("building: a pattern without a match", "--input_regex=*.none", says="*.none"),
    build("building: a pattern out of the folder", "--input_regex=../*", says="../*"),
    build("building: an unknown tokenizer", "--tokenizer_name_or_path=/no/words", says="/no/words"),
    build("building: a share that is none", "--shard=3/2", says="3/2"),
    build("building: more held out than there is", "--heldout_fraction=2", says="heldout"),
    build("building: empty files only", says="the corpus would be empty",
          prepare=write("in/a.format", "")),
    build("building: an image", says="a.format",
          prepare=write("in/a.format", b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 9)),
    build("building: a pickle", says="pickle", prepare=write("in/a.format", b"\x80\x04]\x94." * 9)),
    build("building: an output folder below a file", "--output_dir=/dev/null/out",
          says="/dev/null"),
    BadInput("merging: nothing there", ("merge_indexed.py", "--input_dir=/no/parts",
             "--input_regex=*", "--output_dir={folder}/out"), "/no/parts"),
    BadInput("looking at a truncated corpus", ("inspect_indexed.py", "{folder}/train"), "train.bin",
             cut("train.bin"), 1),
    BadInput("looking at nothing", ("inspect_indexed.py", "/no/corpus"), "/no/corpus"),
)  # fmt: skip
BAD_INPUTS = (*OPTIONS, *RECIPES, *CORPORA, *MODELS, *COMMANDS, *TEXTS)

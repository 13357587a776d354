"""Small sound files of each format that others write, and what reads them."""

import bz2
import gzip
import io
import json
import lzma
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import google_crc32c
import pyarrow
import pyarrow.parquet
import zstandard

from minimoe_dist.checkpoints.run import newest_whole_checkpoint
from minimoe_dist.config import load_run_config
from minimoe_dist.config.deepspeed_json import check_deepspeed_json
from minimoe_dist.corpus.blocks import Problems
from minimoe_dist.corpus.reading import Inputs, ReadingOptions
from minimoe_dist.corpus.sources import TFRecordSource
from minimoe_dist.corpus.tokenizing import check_tokenizer_files, open_known_tokenizer
from minimoe_dist.data.indexed import IndexedCorpus
from minimoe_dist.data.tasks import Table, open_table, open_task
from minimoe_dist.megatron_files.arguments import ModelOverrides
from minimoe_dist.megatron_files.finding import find_rank_files
from minimoe_dist.model_description import describe_model, require_model
from minimoe_dist.models.megatron.reading import MegatronCheckpoint
from minimoe_dist.preflight.weights import check_weights
from minimoe_dist.runs import launches
from minimoe_dist.runs.checkpoints import newest_state
from minimoe_dist.runs.launches import read_starts
from minimoe_dist.runs.starts import read_events
from tests.checkpoints.megatron.maker import make_checkpoint, make_model
from tests.checkpoints.states import save
from tests.test_cli import write_corpus, write_teacher

# Returns the sound file that is damaged in its place, and what reads it there.
Format = Callable[[Path], tuple[Path, Callable[[], object]]]
RECORDS = [{"text": f"This is text number {n}. It has two sentences.", "n": n} for n in range(20)]


def corpus(suffix: str) -> Format:
    def make(folder: Path) -> tuple[Path, Callable[[], object]]:
        prefix = write_corpus(folder / "corpus")

        def read() -> None:
            opened = IndexedCorpus.open(str(prefix))
            for number in range(min(100, len(opened))):
                opened.sentence(number)

        return Path(f"{prefix}{suffix}"), read

    return make


def text(name: str, content: bytes) -> Format:
    def make(folder: Path) -> tuple[Path, Callable[[], object]]:
        path = folder / name
        path.write_bytes(content)

        def read() -> None:
            inputs = Inputs([str(path)], ReadingOptions(show_progress=False))
            reader = inputs.reader()
            for work in inputs.work():
                if not isinstance(work.source, TFRecordSource):
                    reader(work)
                elif work.block.damage is None:
                    work.source.pairs(work.block, {"cls": 2, "sep": 3}, Problems())

        return path, read

    return make


def table(name: str, content: bytes) -> Format:
    def make(folder: Path) -> tuple[Path, Callable[[], object]]:
        path = folder / name
        path.write_bytes(content)
        source = Table(str(path), ("text",), "n", None, "classification")
        return path, lambda: open_table(source, "train")

    return make


def recipe(folder: Path) -> tuple[Path, Callable[[], object]]:
    path = folder / "recipe.yaml"
    path.write_text(
        "output_dir: out\nteacher: {model_name_or_path: a}\ndata:\n  record_path_or_regex: [b]\n"
        "students:\n- {name: x, layer: 3, hidden: 384, heads: 12, moe: '1,4'}\n"
        "training: {max_steps: 10, learning_rate: 1.0e-3}\n"
    )
    return path, lambda: load_run_config(str(path))


def deepspeed(folder: Path) -> tuple[Path, Callable[[], object]]:
    path = folder / "zero.json"
    zero = {"stage": 1, "reduce_bucket_size": 5e8, "offload_optimizer": {"device": "none"}}
    path.write_text(json.dumps({"zero_optimization": zero, "bf16": {"enabled": "auto"}}))
    return path, lambda: check_deepspeed_json(str(path))


def model(name: str) -> Format:
    def make(folder: Path) -> tuple[Path, Callable[[], object]]:
        teacher = write_teacher(folder / "teacher")
        return teacher / name, lambda: check_weights("m", require_model(str(teacher), "m"))

    return make


def tokenizer(folder: Path) -> tuple[Path, Callable[[], object]]:
    from tokenizers import Tokenizer, models

    teacher = write_teacher(folder / "teacher")
    words = {word: n for n, word in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"))}
    path = teacher / "tokenizer.json"
    Tokenizer(models.WordPiece(words, unk_token="[UNK]")).save(str(path))

    def read() -> None:
        check_tokenizer_files(str(teacher))
        open_known_tokenizer(str(teacher))

    return path, read


def _megatron(folder: Path) -> Path:
    sizes = {"vocab_size": 16, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    made = make_model(**sizes, num_attention_heads=2, max_position_embeddings=8)
    return make_checkpoint(folder / "m", made)


def megatron(folder: Path) -> tuple[Path, Callable[[], object]]:
    root = _megatron(folder)

    def read() -> None:
        checkpoint = MegatronCheckpoint(find_rank_files(root), ModelOverrides())
        list(checkpoint.tensors(checkpoint.sizes.vocab_size))

    return root / "release/mp_rank_00/model_optim_rng.pt", read


def megatron_headers(folder: Path) -> tuple[Path, Callable[[], object]]:
    root = _megatron(folder)
    path = root / "release/mp_rank_00/model_optim_rng.pt"
    return path, lambda: describe_model(str(root), "teacher", teaches=True)


def megatron_facts(folder: Path) -> tuple[Path, Callable[[], object]]:
    root = _megatron(folder)
    path = root / "config.json"
    facts = {"num_attention_heads": 2, "layer_norm_eps": 1e-5, "hidden_act": "gelu"}
    path.write_text(json.dumps({**facts, "vocab_size": 14}))
    return path, lambda: describe_model(str(root), "teacher", teaches=True)


def _field(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | 2, len(content)]) + content


def _tfrecord() -> bytes:
    def masked(data: bytes) -> bytes:
        value = google_crc32c.value(data)
        rotated = (value >> 15 | value << 17) & 0xFFFFFFFF
        return struct.pack("<I", (rotated + 0xA282EAD8) & 0xFFFFFFFF)

    lists = {b"indices": bytes([2, 5, 6, 3, 7, 3]), b"segments": bytes([0, 0, 0, 0, 1, 1])}
    features = b"".join(
        _field(1, _field(1, name) + _field(2, _field(3, _field(1, numbers))))
        for name, numbers in lists.items()
    )
    message = _field(1, features)
    head = struct.pack("<Q", len(message))
    return 5 * (head + masked(head) + message + masked(message))


def conll(folder: Path) -> tuple[Path, Callable[[], object]]:
    path = folder / "train.txt"
    path.write_text("-DOCSTART- O\n\n" + "Anna\tB-PER\nin\tO\nBonn\tB-LOC\n.\tO\n\n" * 5)
    return path, lambda: open_task("ner", folder, "train")


def checkpoint(name: str) -> Format:
    def make(folder: Path) -> tuple[Path, Callable[[], object]]:
        saved = save(folder / "checkpoints", 1)

        def read() -> None:
            newest_state(folder)
            newest_whole_checkpoint(folder / "checkpoints")

        return saved / name, read

    return make


def starts(folder: Path) -> tuple[Path, Callable[[], object]]:
    launches.begin(folder, command=["distill"], host="n1")
    launches.leave("finished", 0)

    def read() -> None:
        read_starts(folder)
        read_events(folder)

    return folder / "starts.jsonl", read


def _parquet() -> bytes:
    file = io.BytesIO()
    columns = {name: [record[name] for record in RECORDS] for name in ("text", "n")}
    pyarrow.parquet.write_table(pyarrow.table(columns), file, row_group_size=7)
    return file.getvalue()


def _zip() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("one.txt", _PROSE)
        archive.writestr("two.jsonl", _JSON_LINES)
    return file.getvalue()


def _tar() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in (("one.txt", _PROSE), ("two.jsonl", _JSON_LINES)):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file.getvalue()


_PROSE = "".join(f"{record['text']}\n\n" for record in RECORDS).encode()
_WIKI = b'<doc id="1" url="a" title="A">\nA\n\nA is one. It is the first.\n</doc>\n' * 5
_JSON_LINES = "".join(json.dumps(record) + "\n" for record in RECORDS).encode()
_ROWS = [f"{record['text']}{{}}{record['n'] % 2}\n" for record in RECORDS]  # type: ignore[operator]
FORMATS: dict[str, Format] = {
    "corpus.idx": corpus(".idx"),
    "corpus.bin": corpus(".bin"),
    "manifest": corpus(".manifest.json"),
    "tfrecord": text("x.tfrecord", _tfrecord()),
    "parquet": text("x.parquet", _parquet()),
    "zip": text("x.zip", _zip()),
    "tar": text("x.tar", _tar()),
    "tar.gz": text("x.tar.gz", gzip.compress(_tar())),
    "gz": text("x.txt.gz", gzip.compress(_PROSE)),
    "bz2": text("x.txt.bz2", bz2.compress(_PROSE)),
    "xz": text("x.txt.xz", lzma.compress(_PROSE)),
    "zst": text("x.txt.zst", zstandard.compress(_PROSE)),
    "wikiextractor": text("wiki_00", _WIKI),
    "plain text": text("x.txt", _PROSE),
    "conll": conll,
    "checkpoint manifest": checkpoint("manifest.json"),
    "checkpoint progress": checkpoint("run.json"),
    "starts": starts,
    "json lines": text("x.jsonl", _JSON_LINES),
    "json array": text("x.json", json.dumps(RECORDS).encode()),
    "table.jsonl": table("t.jsonl", _JSON_LINES),
    "table.json": table("t.json", json.dumps(RECORDS).encode()),
    "table.csv": table("t.csv", "".join(["text,n\n", *_ROWS]).replace("{}", ",").encode()),
    "table.tsv": table("t.tsv", "".join(["text\tn\n", *_ROWS]).replace("{}", "\t").encode()),
    "recipe": recipe,
    "deepspeed": deepspeed,
    "config.json": model("config.json"),
    "safetensors": model("model.safetensors"),
    "tokenizer.json": tokenizer,
    "megatron": megatron,
    "megatron_headers": megatron_headers,
    "megatron_facts": megatron_facts,
}

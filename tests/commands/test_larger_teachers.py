"""bert-xlarge-chinese on WuDao, scaled down: from JSON arrays and random weights to the exports."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from transformers import AutoConfig, AutoModel, BertTokenizer

from minimoe_dist.checkpoints.random_model import write_random_model
from minimoe_dist.corpus.build import build_indexed
from minimoe_dist.corpus.reading import ReadingOptions
from minimoe_dist.corpus.tokenizing import load_tokenizer
from tests.commands import support

CONFIGS = Path(__file__).parents[2] / "configs"
CHARACTERS = [chr(0x4E00 + number) for number in range(195)]
TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *CHARACTERS]
ROWS = 256  # of the teacher's word embeddings, padded to a multiple of 128
STUDENTS = [f"minimoe_{layers}l_384h_1_4e" for layers in (6, 4, 3)]


def make_wudao(folder: Path) -> None:
    """Two files, each one JSON array of objects with WuDao's keys."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    for name in ("part-01.json", "part-02.json"):
        documents = []
        for number in range(60):
            sentences = [
                "".join(generator.choice(CHARACTERS, 12)) + "。"
                for _ in range(generator.integers(3, 8))
            ]
            documents.append({
                "id": number, "uniqueKey": f"{name}{number}", "titleUkey": "t", "dataType": "百科",
                "title": "".join(generator.choice(CHARACTERS, 5)), "content": "".join(sentences),
            })  # fmt: skip
        (folder / name).write_text(json.dumps(documents, ensure_ascii=False))


@pytest.fixture(scope="module")
def chinese(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the teacher, a corpus of its tokenizer, and one of another tokenizer."""
    folder = tmp_path_factory.mktemp("chinese")
    values = json.loads((CONFIGS / "models" / "erlangshen_1.3b.json").read_text())
    values |= {
        "vocab_size": ROWS, "hidden_size": 64, "num_hidden_layers": 3, "intermediate_size": 128,
        "max_position_embeddings": 64, "initializer_range": 0.1,
    }  # fmt: skip
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    write_random_model(config, folder / "teacher")
    for name, tokens in (("teacher", TOKENS), ("other", [*TOKENS[:-2], *TOKENS[:-3:-1]])):
        (folder / name).mkdir(exist_ok=True)
        (folder / name / "vocab.txt").write_text("\n".join(tokens) + "\n")
    make_wudao(folder / "wudao")
    files = sorted(str(path) for path in (folder / "wudao").iterdir())
    for prefix, tokenizer in (("corpus", folder / "teacher"), ("foreign", folder / "other")):
        build_indexed(
            files,
            str(folder / prefix),
            load_tokenizer(str(tokenizer))
            if prefix == "corpus"
            else BertTokenizer(vocab=str(tokenizer / "vocab.txt")),
            ReadingOptions(),
            whole_words=prefix == "corpus",
        )
    return folder


def scaled_down(recipe: str, chinese: Path, output_dir: Path, **sections: Any) -> Path:
    """A shipped recipe with tiny widths and two steps, beside its output folder."""
    values = yaml.safe_load((CONFIGS / "recipes" / f"{recipe}.yaml").read_text())
    values["output_dir"] = str(output_dir)
    values["teacher"]["model_name_or_path"] = str(chinese / "teacher")
    values["data"] |= {"record_path_or_regex": str(chinese / "corpus"), "max_length": 32}
    values["objective"]["num_relation_heads"] = 4
    values["training"] |= {"per_device_train_batch_size": 4, "max_steps": 2, "log_interval": 1}
    values["parallel"] |= {"precision": "fp32", "use_cpu": True}
    for stage in values.get("stages", [values]):
        for student in stage["students"]:
            student |= {"hidden": 16, "heads": 2, "layer": min(3, student["layer"])}
    for name, changes in sections.items():
        values[name] = {**values[name], **changes}
    path = output_dir.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture(scope="module")
def direct(chinese: Path) -> tuple[Path, str]:
    """The run of the direct recipe: its folder, and what it printed."""
    recipe = scaled_down("bert_xlarge_chinese_minimoe", chinese, chinese / "direct")
    return chinese / "direct", support.finish(recipe)


@pytest.mark.parametrize("student", STUDENTS)
def test_every_student_is_exported_with_the_teachers_rows(
    direct: tuple[Path, str], student: str
) -> None:
    folder = direct[0] / "export" / student
    model = AutoModel.from_pretrained(folder)
    assert model.config.family == "megatron-bert"
    assert model.get_input_embeddings().num_embeddings == ROWS
    assert len(load_tokenizer(str(folder))) == len(TOKENS)


def test_rows_of_padding_are_explained(direct: tuple[Path, str]) -> None:
    said = direct[1]
    assert f"has {ROWS} rows of word embeddings for {len(TOKENS)} tokens: 56 are padding" in said


def test_an_assistant_teaches_the_three_students(chinese: Path) -> None:
    output_dir = chinese / "chain"
    support.finish(scaled_down("bert_xlarge_chinese_minimoe_ta", chinese, output_dir))
    exports = {path.parent.name for path in output_dir.rglob("export/*/config.json")}
    assert exports >= set(STUDENTS)
    assert len(exports) == 4


def test_a_corpus_of_another_vocabulary_is_refused(chinese: Path) -> None:
    recipe = scaled_down(
        "bert_xlarge_chinese_minimoe", chinese, chinese / "refused",
        data={"record_path_or_regex": str(chinese / "foreign"), "max_length": 32},
    )  # fmt: skip
    statuses, said = support.run(recipe, world_size=1)
    assert statuses == [2]
    assert "was built with the vocabulary of" in said


def test_a_tokenizer_larger_than_the_teacher_is_refused(chinese: Path, tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join([*TOKENS, *map(str, range(100))]) + "\n")
    (tmp_path / "config.json").write_text((chinese / "teacher" / "config.json").read_text())
    from minimoe_dist.config import load_run_config
    from minimoe_dist.recipes.corpora import open_data

    recipe = scaled_down(
        "bert_xlarge_chinese_minimoe", chinese, tmp_path / "run",
        teacher={
            "model_name_or_path": str(chinese / "teacher"),
            "tokenizer_name_or_path": str(tmp_path),
        },
    )  # fmt: skip
    with pytest.raises(ValueError, match=rf"has 300 tokens, but .* embeds {ROWS}"):
        open_data(load_run_config(str(recipe), []))


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("m", "release/mp_rank_00: has no model_optim_rng.pt; copy the folder again"),
        ("m/release/mp_rank_00/one.pt", "minimoe-dist convert --input {path} --output {path}-hugg"),
    ],
)
def test_a_megatron_checkpoint_that_cannot_teach_names_the_remedy(
    name: str, remedy: str, chinese: Path, tmp_path: Path
) -> None:
    from minimoe_dist.config import load_run_config
    from minimoe_dist.preflight.recipes import problems_of_stages
    from minimoe_dist.runtime import detect_launch

    (tmp_path / "m" / "release" / "mp_rank_00").mkdir(parents=True)
    path = tmp_path / name
    if path.suffix:
        path.touch()
    recipe = scaled_down(
        "bert_xlarge_chinese_minimoe", chinese, tmp_path / "run",
        teacher={"model_name_or_path": str(path)},
    )  # fmt: skip
    config = load_run_config(str(recipe), [])
    (found,) = problems_of_stages([config], detect_launch({}), "cpu")
    assert len(found) == 1, found
    assert remedy.format(path=path) in found[0]

"""Cards tell what runs wrote, in valid front matter, and say what nobody knows."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from minimoe_dist.reporting.model_card import CardFacts, model_card
from minimoe_dist.reporting.runs import find_export
from tests.reporting.folders import distilled, tuned

CONFIG: dict[str, Any] = {
    "model_type": "bert",
    "architectures": ["BertForSequenceClassification"],
    "num_hidden_layers": 3,
    "hidden_size": 192,
    "num_attention_heads": 12,
    "intermediate_size": 768,
    "vocab_size": 30522,
    "max_position_embeddings": 512,
}


def card_of(folder: Path, config: dict[str, Any] = CONFIG, **facts: Any) -> str:
    told = CardFacts(config=config, parameters=1_000, gmac=0.17, **facts)
    return model_card(find_export(str(folder)), told)


def test_a_fine_tuned_model_tells_its_scores_and_how_it_was_chosen(tmp_path: Path) -> None:
    card = card_of(tuned(tmp_path / "sst2", "some/teacher", 0.8, 0.9))
    assert "# BERT encoder for sst2" in card
    assert "sst2, dev set (50 samples): accuracy 0.9100. It is the best of 4 trainings" in card
    assert "Mean over 2 seeds" in card and "accuracy 0.9000 ± 0.0140" in card
    assert "AutoModelForSequenceClassification" in card
    assert "fine-tune it before use" not in card
    assert "distilled from" not in card and "None" not in card


def test_the_score_that_decided_is_told_first(tmp_path: Path) -> None:
    folder = tuned(tmp_path / "ner", "some/teacher", 0.8)
    results = json.loads((folder / "results.json").read_text())
    results["metric"] = "chunk_f1"
    results["best"]["scores"] = {"accuracy": 0.97, "chunk_f1": 0.5}
    results["cells"] = results["cells"][:1]
    (folder / "results.json").write_text(json.dumps(results))
    assert "(50 samples): chunk_f1 0.5000, accuracy 0.9700.\n" in card_of(folder)


def test_the_hub_is_told_what_a_fine_tuned_model_does(tmp_path: Path) -> None:
    folder = tuned(tmp_path / "ner", "/home/a/runs/small/export/student", 0.8)
    config = CONFIG | {"architectures": ["BertForTokenClassification"]}
    card = card_of(folder, config)
    assert yaml.safe_load(card.split("---\n")[1])["pipeline_tag"] == "token-classification"
    assert "The card of `small/student` tells" in card and "/home" not in card


def test_a_student_tells_its_recipe(tmp_path: Path) -> None:
    config = CONFIG | {"architectures": ["BertModel"]}
    card = card_of(distilled(tmp_path / "run", "some/teacher"), config)
    assert "20 steps of 16 sequences" in card and "distilled from `teacher`" in card
    assert "Downstream tasks: not measured." in card and "fine-tune it before use" in card


def test_a_global_batch_is_told_as_it_was_asked_for(tmp_path: Path) -> None:
    run = distilled(tmp_path / "run", "some/teacher")
    summary = json.loads((run / "summary.json").read_text())
    summary["options"]["training"]["global_batch_size"] = 512
    (run / "summary.json").write_text(json.dumps(summary))
    assert "20 steps of 512 sequences" in card_of(run, CONFIG | {"architectures": ["BertModel"]})


@pytest.mark.parametrize("model_type", ["minimoe", "minimoe-elastic"])
def test_code_of_the_folder_needs_trust(model_type: str, tmp_path: Path) -> None:
    config = CONFIG | {
        "model_type": model_type,
        "architectures": ["MiniMoeForRelationsAndMaskedLM"],
        "auto_map": {"AutoModel": "moebert.MiniMoeModel"},
    }
    card = card_of(distilled(tmp_path / "run", "some/teacher"), config)
    assert card.count("trust_remote_code=True") == 2
    assert "AutoModel.from_pretrained" in card  # the head has no automatic class


@pytest.mark.parametrize("has_pooler", [False, True])
def test_a_model_without_a_pooler_says_so(has_pooler: bool, tmp_path: Path) -> None:
    config = CONFIG | {"architectures": ["BertModel"]}
    run = distilled(tmp_path / "run", "some/teacher")
    card = card_of(run, config, has_pooler=has_pooler)
    assert ('from_pretrained("FOLDER", add_pooling_layer=False)' in card) is not has_pooler
    assert ("It has no pooler" in card) is not has_pooler
    tagger = CONFIG | {"architectures": ["BertForTokenClassification"]}
    assert "pool" not in card_of(run, tagger, has_pooler=has_pooler)


def test_front_matter_is_yaml_with_what_was_given(tmp_path: Path) -> None:
    folder = tuned(tmp_path / "sst2", "some/teacher", 0.8)
    given = {"license": "apache-2.0", "languages": ("no", "en"), "sentences": "mean pooling"}
    values = yaml.safe_load(card_of(folder, **given).split("---\n")[1])
    assert values["license"] == "apache-2.0"
    assert values["language"] == ["no", "en"]
    assert values["library_name"] == "sentence-transformers"


def test_headings_stand_apart(tmp_path: Path) -> None:
    lines = card_of(tuned(tmp_path / "sst2", "some/teacher", 0.8)).splitlines()
    for place, line in enumerate(lines):
        if line.startswith("## "):
            assert lines[place - 1] == lines[place + 1] == "", line

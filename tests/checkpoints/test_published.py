import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.testing import assert_close

from minimoe_dist.checkpoints.published import load_published, save_published
from minimoe_dist.models.elastic import ElasticForRelations
from minimoe_dist.models.elastic_surgery import cut, reorder
from minimoe_dist.models.mlm_head import ElasticForRelationsAndMaskedLM
from minimoe_dist.models.moebert import MiniMoeForRelations
from minimoe_dist.models.tinybert import MiniMoeForStates
from tests.golden import FOLDER, TOLERANCE, load_golden, part
from tests.models.elastic_models import SPARSE_MAP, batch, elastic, random_orders
from tests.models.test_elastic import once_for_all

CASES = {
    "bert_minilm": ("w.", MiniMoeForRelations),
    "roberta_minilm": ("w.", MiniMoeForRelations),
    "megatronbert_minilm": ("w.", MiniMoeForRelations),
    "bert_tinybert": ("w.", MiniMoeForStates),
    "moebert_minilm_1_4": ("w.", MiniMoeForRelations),
    "moebert_minilm_4_4": ("w.", MiniMoeForRelations),
    "sparsebert": ("w.", ElasticForRelationsAndMaskedLM),
    "sparsebert reordered": ("reordered.", ElasticForRelations),
    "ofabert": ("w.", ElasticForRelations),
}


def published_folder(folder, name):
    """A folder as the published implementation would have left it."""
    prefix, _ = CASES[name]
    file = name.split()[0]
    config, tensors = load_golden(file)
    with safe_open(FOLDER / f"{file}.safetensors", "pt") as opened:
        meta = json.loads(opened.metadata()["meta"])
    if "sparsity_map" in meta:
        config |= {"sparsity": "0", "sparsity_map": meta["sparsity_map"]}
    config |= {"architectures": ["Published"], "transformers_version": "4.18.0"}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    own = {key: value.clone() for key, value in part(tensors, prefix).items()}
    save_file(own, folder / "model.safetensors")
    return folder


def read(folder):
    return json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")


def same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        assert ours[key].dtype == tensor.dtype and torch.equal(ours[key], tensor), key


@pytest.mark.parametrize("name", CASES)
def test_a_published_folder_is_written_back_unchanged(tmp_path, name):
    source = published_folder(tmp_path / "published", name)
    model = load_published(source)
    assert type(model) is CASES[name][1]
    save_published(model, tmp_path / "written")
    before, after = read(source), read(tmp_path / "written")
    assert after[0] == before[0]
    same(after[1], before[1])


def test_half_precision_stays_half_precision(tmp_path):
    source = published_folder(tmp_path / "published", "ofabert")
    _, tensors = read(source)
    halved = {k: v.half() if v.is_floating_point() else v for k, v in tensors.items()}
    save_file(halved, source / "model.safetensors")
    model = load_published(source)
    assert model.dtype == torch.float32
    save_published(model, tmp_path / "written")
    same(read(tmp_path / "written")[1], halved)


@pytest.mark.parametrize("sparsity", ["0", "50", "90"])
def test_a_published_sparse_model_gives_its_hidden_states(tmp_path, sparsity):
    model = load_published(published_folder(tmp_path / "published", "sparsebert reordered"))
    _, tensors = load_golden("sparsebert")
    names = ("input_ids", "attention_mask", "token_type_ids")
    inputs = {name: tensors[f"in.{name}"] for name in names}
    real = inputs["attention_mask"].bool()
    hidden = model.bert(**inputs, sparsity=sparsity).last_hidden_state
    assert_close(hidden[real], tensors[f"out.hidden.{sparsity}"][real], **TOLERANCE)


def test_a_published_once_for_all_student_keeps_the_norms_of_missing_layers(tmp_path):
    model = load_published(published_folder(tmp_path / "published", "ofabert"))
    _, tensors = load_golden("ofabert")
    names = ("input_ids", "attention_mask", "token_type_ids")
    inputs = {name: tensors[f"in.{name}"] for name in names}
    real = inputs["attention_mask"].bool()
    hidden = model.bert(**inputs, sparsity="1,24").last_hidden_state
    assert_close(hidden[real], tensors["out.hidden.1,24"][real], **TOLERANCE)


def sparse_student():
    model = elastic(sparsity_map=SPARSE_MAP, keep_missing_layers=True)
    reorder(model, random_orders())
    return cut(model, "50")


@pytest.mark.parametrize("make", [sparse_student, once_for_all])
def test_our_students_come_back_from_the_published_layout(tmp_path, make):
    model = make()
    save_published(model, tmp_path)
    again = load_published(tmp_path)
    sparsity = "2,16" if make is once_for_all else None
    ours, theirs = (one(**batch(), sparsity=sparsity).signals[0] for one in (again, model))
    assert torch.equal(ours, theirs)


def test_recover_indices_are_float32_in_published_folders(tmp_path):
    student = sparse_student()
    save_published(student, tmp_path)
    stored = read(tmp_path)[1]["bert.recover_indices"]
    assert stored.dtype == torch.float32
    assert stored.tolist() == student.config.recover_indices


def test_leftovers_of_empty_blocks_are_put_back(tmp_path):
    save_published(sparse_student(), tmp_path / "published")
    _, tensors = read(tmp_path / "published")
    prefix = "bert.encoder.layer.1.attention"
    tensors[f"{prefix}.output.dense.bias"] = torch.ones(24)
    tensors[f"{prefix}.self.query.weight"] = torch.zeros(0, 24)
    save_file(tensors, tmp_path / "published" / "model.safetensors")
    save_published(load_published(tmp_path / "published"), tmp_path / "written")
    same(read(tmp_path / "written")[1], tensors)


def test_a_changed_student_is_written_with_its_new_weights(tmp_path):
    model = load_published(published_folder(tmp_path / "published", "sparsebert"))
    with torch.no_grad():
        model.bert.embeddings.word_embeddings.weight.add_(1.0)
    save_published(model, tmp_path / "written")
    tensors = read(tmp_path / "written")[1]
    embeddings = tensors["bert.embeddings.word_embeddings.weight"]
    assert torch.equal(embeddings, model.bert.embeddings.word_embeddings.weight)
    assert torch.equal(tensors["cls.predictions.decoder.weight"], embeddings)


def test_corrupted_recover_indices_are_refused(tmp_path):
    source = published_folder(tmp_path / "published", "sparsebert reordered")
    _, tensors = read(source)
    tensors["bert.recover_indices"][0] += 3
    save_file(tensors, source / "model.safetensors")
    with pytest.raises(ValueError, match="recover_indices: not an order of the 48"):
        load_published(source)


def test_a_sparsity_outside_the_map_is_refused(tmp_path):
    source = published_folder(tmp_path / "published", "ofabert")
    config, _ = read(source)
    (source / "config.json").write_text(json.dumps(config | {"sparsity": "4,48"}))
    with pytest.raises(ValueError, match="sparsity: 4,48 is not in the model's map"):
        load_published(source)


def test_weights_of_another_model_are_refused(tmp_path):
    source = published_folder(tmp_path / "published", "ofabert")
    config, _ = read(source)
    (source / "config.json").write_text(json.dumps(config | {"hidden_size": 96}))
    with pytest.raises(ValueError, match=r"weights do not fit config\.json"):
        load_published(source)

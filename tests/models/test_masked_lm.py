"""Students that predict tokens, as transformers loads them: from exports and in pipelines."""

import torch
from transformers import AutoModelForMaskedLM, BertForMaskedLM, BertTokenizerFast, pipeline

import minimoe_dist.models.auto  # noqa: F401 (transformers' automatic classes)
from minimoe_dist.checkpoints.export import export_elastic, export_student
from minimoe_dist.models.build import build_student
from minimoe_dist.models.masked_lm import ElasticForMaskedLM, MiniMoeForMaskedLM
from minimoe_dist.models.mlm_head import (
    ElasticForRelationsAndMaskedLM,
    MiniMoeForRelationsAndMaskedLM,
)
from tests.checkpoints.test_export import run_elsewhere
from tests.families import padded_batch, student_options
from tests.models.elastic_models import SPARSE_MAP, batch, elastic
from tests.models.test_as_transformers import WORDS


def trained(moe=(2, 4), **changes):
    """A student as training leaves it, with a head whose bias is not 0."""
    config = student_options("bert", moe, **changes)
    student = build_student(config, seed=0, model_class=MiniMoeForRelationsAndMaskedLM)
    with torch.no_grad():
        student.cls["predictions"].bias.normal_()
    return student.eval()


def loss_of(student, inputs, labels):
    output = student(**inputs, labels=labels)
    return output.masked_lm_sum / output.predicted


def labels_of(ids, mask):
    chosen = (torch.rand(ids.shape, generator=torch.Generator().manual_seed(2)) < 0.4) & mask
    return torch.where(chosen, ids, -100)


@torch.no_grad()
def test_an_export_predicts_what_the_student_was_trained_to(tmp_path) -> None:
    student = trained()
    export_student(student.config, student.state_dict(), tmp_path / "export")
    model, report = AutoModelForMaskedLM.from_pretrained(
        tmp_path / "export", output_loading_info=True
    )
    assert type(model) is MiniMoeForMaskedLM
    assert not report["missing_keys"] and not report["unexpected_keys"]
    ids, mask, _ = padded_batch(0, 12)
    inputs = {"input_ids": ids, "attention_mask": mask}
    labels = labels_of(ids, mask)
    output = model.eval()(**inputs, labels=labels, output_hidden_states=True)
    assert output.logits.shape == (*ids.shape, student.config.vocab_size)
    assert len(output.hidden_states) == student.config.num_hidden_layers + 1
    assert torch.allclose(output.loss, loss_of(student, inputs, labels), atol=1e-6)


@torch.no_grad()
def test_a_sliced_export_predicts_what_its_sub_model_does(tmp_path) -> None:
    order = torch.randperm(32, generator=torch.Generator().manual_seed(3)).tolist()
    options = {"sparsity_map": SPARSE_MAP, "recover_indices": order}
    student = elastic(ElasticForRelationsAndMaskedLM, **options)
    ids, mask = batch()["input_ids"], batch()["attention_mask"]
    labels = labels_of(ids, mask)
    export_elastic(student, tmp_path / "whole")
    export_elastic(student, tmp_path / "half", sparsity="50")
    for name, sparsity in (("whole", None), ("half", "50")):
        model = AutoModelForMaskedLM.from_pretrained(tmp_path / name).eval()
        assert type(model) is ElasticForMaskedLM
        found = model(**batch(), labels=labels).loss
        output = student(**batch(), labels=labels, **({"sparsity": sparsity} if sparsity else {}))
        assert torch.allclose(found, output.masked_lm_sum / output.predicted, atol=1e-6), name


@torch.no_grad()
def test_a_dense_student_predicts_as_bert_does(tmp_path) -> None:
    student = trained((1, 1))
    export_student(student.config, student.state_dict(), tmp_path / "bert")
    bert = BertForMaskedLM.from_pretrained(tmp_path / "bert").eval()
    ours = MiniMoeForMaskedLM(student.config).eval()
    state = {k: v for k, v in student.state_dict().items() if not k.startswith("relation.")}
    ours.load_state_dict(state)
    ids, mask, _ = padded_batch(0, 12)
    found, wanted = (model(input_ids=ids, attention_mask=mask).logits for model in (ours, bert))
    assert torch.allclose(found[mask], wanted[mask], atol=1e-5)


def test_new_tokens_get_a_bias_too() -> None:
    model = MiniMoeForMaskedLM(trained().config).eval()
    before = model.config.vocab_size
    model.resize_token_embeddings(before + 5)
    assert model(input_ids=torch.tensor([[2, 3]])).logits.shape == (1, 2, before + 5)
    assert not model.cls["predictions"].bias[before:].any()
    model.resize_token_embeddings(before - 3)
    assert model(input_ids=torch.tensor([[2, 3]])).logits.shape == (1, 2, before - 3)


def test_masked_words_are_filled_in_a_pipeline_and_without_this_package(tmp_path) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    tokenizer = BertTokenizerFast(vocab=str(tmp_path / "vocab.txt"))
    student = trained(vocab_size=len(WORDS))
    folder = tmp_path / "export"
    export_student(student.config, student.state_dict(), folder, tokenizer)
    fill = pipeline("fill-mask", model=str(folder), device="cpu")
    (best, *_) = fill("a b [MASK] d")
    ids = tokenizer("a b [MASK] d", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        logits = AutoModelForMaskedLM.from_pretrained(folder).eval()(input_ids=ids).logits
    assert best["token"] == int(logits[0, 3].argmax())
    code = (
        "import sys; sys.modules['minimoe_dist'] = None\n"
        "import torch\nfrom transformers import AutoModelForMaskedLM as Auto\n"
        "model = Auto.from_pretrained(sys.argv[1], trust_remote_code=True).eval()\n"
        "ids = torch.tensor([list(map(int, sys.argv[2].split(',')))])\n"
        "print(int(model(input_ids=ids).logits[0, 3].argmax()))"
    )
    said = run_elsewhere(code, tmp_path, folder, ",".join(map(str, ids[0].tolist()))).stdout
    assert int(said) == best["token"]

"""Students behave as transformers' own models: outputs, inputs, saving, compiling, training."""

import os
import subprocess
import sys

import pytest
import torch
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    BertTokenizerFast,
    pipeline,
)

from minimoe_dist.models.auto import AutoModel
from minimoe_dist.models.configuration import MiniMoeConfig
from minimoe_dist.models.elastic import ElasticModel
from minimoe_dist.models.elastic_configuration import ElasticConfig
from minimoe_dist.models.moebert import MiniMoeModel
from minimoe_dist.models.submodels import once_for_all_map
from minimoe_dist.models.task_heads import (
    ElasticForSequenceClassification,
    MiniMoeForSequenceClassification,
)

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz"]
SIZES = {
    "vocab_size": len(WORDS),
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
}


def moe_config(**fields):
    return MiniMoeConfig(**SIZES, attention_experts=2, feedforward_experts=4, **fields)


def sliced_config(**fields):
    """Of a sub-model whose dimensions have been reordered."""
    whole = ElasticConfig(**SIZES)
    order = torch.randperm(32, generator=torch.Generator().manual_seed(3)).tolist()
    sub_models = once_for_all_map(whole.sizes, [2, 3], [16, 32])
    more = {"sparsity_map": sub_models, "sparsity": "2,16", "recover_indices": order}
    return ElasticConfig(**SIZES, **(more | fields))


def dense_config(**fields):
    return MiniMoeConfig(**SIZES, attention_experts=1, feedforward_experts=1, **fields)


STUDENTS = {
    "experts": (moe_config, MiniMoeModel, MiniMoeForSequenceClassification),
    "sliced": (sliced_config, ElasticModel, ElasticForSequenceClassification),
    "dense": (dense_config, MiniMoeModel, MiniMoeForSequenceClassification),
}


def made(model_class, config, seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return model_class(config).eval()


def make_inputs():
    mask = torch.arange(11) < torch.tensor([11, 4, 7])[:, None]
    ids = torch.randint(5, 31, (3, 11), generator=torch.Generator().manual_seed(0)) * mask
    return {"input_ids": ids, "attention_mask": mask.long(), "token_type_ids": (ids % 2) * mask}


def bert_like(model):
    """transformers' own model with the weights of a dense student."""
    fields = {name: getattr(model.config, name) for name in SIZES}
    bert = BertModel(BertConfig(**fields, attn_implementation="eager"), add_pooling_layer=False)
    bert.load_state_dict(model.state_dict())
    return bert.eval()


@pytest.fixture(scope="module")
def dense_and_bert():
    model = made(MiniMoeModel, dense_config())
    return model, bert_like(model)


@torch.no_grad()
def test_states_and_attentions_are_those_of_bert(dense_and_bert) -> None:
    ours, berts = dense_and_bert
    inputs = make_inputs()
    asked = {"output_hidden_states": True, "output_attentions": True}
    given, wanted = ours(**inputs, **asked), berts(**inputs, **asked)
    real = inputs["attention_mask"].bool()
    assert len(given.hidden_states) == len(wanted.hidden_states) == 4
    for one, other in zip(given.hidden_states, wanted.hidden_states, strict=True):
        assert torch.allclose(one[real], other[real], atol=1e-6)
    assert len(given.attentions) == len(wanted.attentions) == 3
    for one, other in zip(given.attentions, wanted.attentions, strict=True):
        rows = real[:, None, :].expand(-1, 4, -1)
        assert torch.allclose(one[rows], other[rows], atol=1e-6)
    assert given.hidden_states[-1] is given.last_hidden_state


@torch.no_grad()
def test_a_tuple_has_what_berts_has(dense_and_bert) -> None:
    ours, berts = dense_and_bert
    inputs = make_inputs()
    asked = {"output_hidden_states": True, "return_dict": False}
    given, wanted = ours(**inputs, **asked), berts(**inputs, **asked)
    assert isinstance(given, tuple) and len(given) == len(wanted)
    assert torch.equal(given[0], ours(**inputs).last_hidden_state)
    assert len(given[1]) == len(wanted[1])


@torch.no_grad()
def test_embeddings_and_positions_may_be_given(dense_and_bert) -> None:
    ours, berts = dense_and_bert
    inputs = make_inputs()
    real = inputs["attention_mask"].bool()
    positions = torch.arange(11).flip(0)[None]
    given = ours(**inputs, position_ids=positions).last_hidden_state
    wanted = berts(**inputs, position_ids=positions).last_hidden_state
    assert torch.allclose(given[real], wanted[real], atol=1e-6)
    assert not torch.allclose(given[real], ours(**inputs).last_hidden_state[real], atol=1e-3)
    ids = inputs.pop("input_ids")
    embedded = ours.get_input_embeddings()(ids)
    again = ours(**inputs, inputs_embeds=embedded).last_hidden_state
    wanted = ours(ids, **inputs).last_hidden_state
    assert torch.equal(again[real], wanted[real])


@pytest.mark.parametrize(
    ("inputs", "words"),
    [({}, "input_ids"), ({"input_ids": torch.ones(1, 2).long(), "inputs_embeds":
      torch.ones(1, 2, 32)}, "one of them"),
     ({"input_ids": torch.ones(1, 2).long(), "attention_mask": torch.ones(1, 3)}, "attention_mask"),
     ({"input_ids": torch.ones(1, 2).long(), "attention_mask": torch.ones(1, 1, 2, 2)},
      "attention_mask")],
    ids=["neither", "both", "length", "axes"],
)  # fmt: skip
def test_inputs_that_do_not_fit_are_refused(inputs, words) -> None:
    with pytest.raises(ValueError, match=words):
        made(MiniMoeModel, moe_config())(**inputs)


@pytest.mark.parametrize("kind", STUDENTS)
@torch.no_grad()
def test_a_whole_graph_says_the_same(kind, tmp_path) -> None:
    """One graph for any batch and length: of torch.export, and of torch.compile."""
    make_config, model_class, _ = STUDENTS[kind]
    model, inputs = made(model_class, make_config()), make_inputs()
    sizes = {0: torch.export.Dim("batch", min=2, max=64), 1: torch.export.Dim("length", max=40)}
    shapes = dict.fromkeys(inputs, sizes)
    exported = torch.export.export(model, (), inputs, dynamic_shapes=shapes).module()
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    shorter = {name: value[:2, :9] for name, value in inputs.items()}
    for batch in (inputs, shorter):
        wanted = model(**batch).last_hidden_state
        for graph in (exported, compiled):
            assert torch.allclose(graph(**batch).last_hidden_state, wanted, atol=1e-6)


@pytest.mark.parametrize("kind", ["experts", "sliced"])
def test_a_compiled_models_gradients_are_its_own(kind) -> None:
    make_config, _, model_class = STUDENTS[kind]
    model, inputs = made(model_class, make_config(num_labels=3)), make_inputs()
    labels = torch.tensor([0, 2, 1])
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    found = []
    for runs in (model, compiled):
        model.zero_grad()
        runs(**inputs, labels=labels).loss.backward()
        found.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys() and len(found[0]) > 20
    for name, gradient in found[0].items():
        assert torch.allclose(gradient, found[1][name], atol=1e-6), name


@pytest.mark.parametrize("kind", ["experts", "sliced"])
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_recomputed_layers_have_the_same_gradients(kind, use_reentrant) -> None:
    make_config, _, model_class = STUDENTS[kind]
    model, inputs = made(model_class, make_config(num_labels=3)).train(), make_inputs()
    options = {"labels": torch.tensor([0, 2, 1]), "sample_ids": torch.arange(3)}
    found = []
    for is_recomputed in (False, True):
        if is_recomputed:
            model.gradient_checkpointing_enable({"use_reentrant": use_reentrant})
        model.zero_grad()
        model(**inputs, **options).loss.backward()
        found.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert len(found[0]) == len(found[1]) > 20
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.parametrize(
    ("num_labels", "labels"),
    [(3, torch.tensor([2, 0, 1])), (1, torch.tensor([0.5, -1.0, 2.0])),
     (1, torch.tensor([[0.5], [-1.0], [2.0]])),
     (3, torch.tensor([[1.0, 0, 1], [0, 0, 1], [1, 1, 1]]))],
    ids=["classes", "number", "column", "several"],
)  # fmt: skip
def test_losses_are_those_of_bert(num_labels, labels) -> None:
    ours = made(MiniMoeForSequenceClassification, dense_config(num_labels=num_labels))
    fields = {name: getattr(ours.config, name) for name in SIZES}
    berts = BertForSequenceClassification(BertConfig(**fields, num_labels=num_labels)).eval()
    berts.load_state_dict(ours.state_dict())
    given, wanted = (model(**make_inputs(), labels=labels) for model in (ours, berts))
    assert torch.allclose(given.loss, wanted.loss, atol=1e-6)
    assert ours.config.problem_type == berts.config.problem_type


@pytest.mark.filterwarnings("error")
def test_the_loss_of_one_number_is_one() -> None:
    model = made(MiniMoeForSequenceClassification, dense_config(num_labels=1))
    one = {name: value[:1] for name, value in make_inputs().items()}
    loss = model(**one, labels=torch.tensor([0.5])).loss
    assert loss.shape == () and torch.isfinite(loss)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.no_grad()
def test_half_precision_says_nearly_the_same(dtype) -> None:
    model, inputs = made(MiniMoeModel, dense_config()), make_inputs()
    wanted = model(**inputs).last_hidden_state
    given = model.to(dtype)(**inputs).last_hidden_state
    assert given.dtype == dtype
    assert (given.float() - wanted).abs().max() < 0.05


# Loads a folder as its reader would, saves it in another, and goes on from there.
_PASS_ON = """
import sys, torch
sys.modules["minimoe_dist"] = None
from pathlib import Path
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification
from transformers import AutoModelForTokenClassification
folder = Path(sys.argv[1])
trusted = {"trust_remote_code": True}
first = AutoModel.from_pretrained(folder / "first", **trusted)
first.save_pretrained(folder / "second")
for name, automatic in (("texts", AutoModelForSequenceClassification),
                        ("tokens", AutoModelForTokenClassification)):
    model = automatic.from_pretrained(folder / "second", num_labels=3, **trusted).eval()
    model.save_pretrained(folder / name)
    again = automatic.from_pretrained(folder / name, **trusted)
    inputs = {"input_ids": torch.tensor([[2, 7, 9, 3]])}
    with torch.no_grad():
        assert torch.allclose(model(**inputs).logits, again(**inputs).logits, atol=1e-6)
        hidden = AutoModel.from_pretrained(folder / name, **trusted)(**inputs)
        assert torch.allclose(hidden[0], first(**inputs)[0], atol=1e-6)
print(sorted(path.name for path in (folder / "texts").glob("*.py")))
"""


@pytest.mark.parametrize("kind", ["experts", "sliced"])
def test_a_saved_model_carries_its_code_however_it_was_loaded(kind, tmp_path) -> None:
    make_config, model_class, _ = STUDENTS[kind]
    made(model_class, make_config()).save_pretrained(tmp_path / "first")
    environment = {
        "PATH": os.environ["PATH"],
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-I", "-c", _PASS_ON, str(tmp_path)]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    names = sorted(path.name for path in (tmp_path / "first").glob("*.py"))
    assert done.stdout.splitlines()[-1] == str(names)
    assert "task_heads.py" in names and "errors.py" in names


def test_files_that_are_no_students_code_are_not_written_over(tmp_path) -> None:
    model = made(MiniMoeModel, moe_config())
    (tmp_path / "errors.py").write_text("MINE = 1\n")
    with pytest.raises(FileExistsError, match="not a student's code"):
        model.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["errors.py"]
    (tmp_path / "errors.py").unlink()
    model.save_pretrained(tmp_path)
    (tmp_path / "errors.py").write_text("# of another version\n")
    model.save_pretrained(tmp_path, True, model.state_dict())  # its own, as it was or not
    assert "UserError" in (tmp_path / "errors.py").read_text()


def test_pipelines_take_students(tmp_path) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
    tokenizer = BertTokenizerFast(vocab=str(tmp_path / "vocab.txt"))
    encoder = made(MiniMoeModel, moe_config())
    encoder.save_pretrained(tmp_path / "student")
    tokenizer.save_pretrained(tmp_path / "student")
    texts = ["a b c", "d e"]
    features = pipeline("feature-extraction", str(tmp_path / "student"))(texts)
    with torch.no_grad():
        wanted = encoder(**tokenizer(texts[0], return_tensors="pt")).last_hidden_state
    assert torch.allclose(torch.tensor(features[0]), wanted, atol=1e-6)
    for task, automatic, count in (
        ("text-classification", AutoModelForSequenceClassification, 1),
        ("token-classification", AutoModelForTokenClassification, 3),
    ):
        model = automatic.from_pretrained(tmp_path / "student", num_labels=2).eval()
        found = pipeline(task, model=model, tokenizer=tokenizer)("a b c")
        assert len(found) == count
        assert all(0.5 <= one["score"] <= 1 for one in found)


def test_the_trainer_takes_students(tmp_path) -> None:
    from transformers import Trainer, TrainingArguments

    torch.manual_seed(0)
    rows = torch.randint(5, 31, (64, 8))
    samples = [
        {"input_ids": row, "attention_mask": torch.ones(8).long(), "labels": int(row[1] > 17)}
        for row in rows
    ]
    config = moe_config(num_labels=2, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    model = made(MiniMoeForSequenceClassification, config)
    trainer = Trainer(
        model,
        TrainingArguments(
            output_dir=str(tmp_path / "run"),
            num_train_epochs=20,
            per_device_train_batch_size=8,
            gradient_accumulation_steps=2,
            learning_rate=5e-3,
            report_to="none",
            save_strategy="epoch",
            save_total_limit=1,
            use_cpu=True,
            disable_tqdm=True,
        ),
        train_dataset=samples,
        eval_dataset=samples,
        compute_metrics=lambda given: {
            "accuracy": float((given.predictions.argmax(-1) == given.label_ids).mean())
        },
    )
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_loss"] < before["eval_loss"] - 0.2
    assert after["eval_accuracy"] > before["eval_accuracy"]
    trainer.save_model(str(tmp_path / "saved"))
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved").eval()
    with torch.no_grad():
        given, wanted = (each(rows).logits for each in (again, model.eval()))
    assert torch.allclose(given, wanted, atol=1e-6)
    assert AutoModel.from_pretrained(tmp_path / "saved").pooler is not None

"""ONNX files say what PyTorch says, for every family and for experts, whatever batch and length."""

import onnx
import pytest
import torch
from onnxruntime import InferenceSession
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    MegatronBertConfig,
    RobertaConfig,
)

from minimoe_dist.checkpoints import onnx_export
from minimoe_dist.checkpoints.onnx_export import OPSET, TOLERANCE, traceable, write_onnx
from minimoe_dist.checkpoints.onnx_quantized import OnnxModel, write_quantized
from minimoe_dist.models.build import build_student, student_config
from minimoe_dist.models.elastic_surgery import cut
from minimoe_dist.models.task_heads import (
    MiniMoeForSequenceClassification,
    MiniMoeForTokenClassification,
)
from tests.models.elastic_models import SPARSE_MAP, elastic

SIZES = {"vocab_size": 60, "max_position_embeddings": 40, "hidden_size": 24}
BASES = {
    "bert": BertConfig(**SIZES),
    "roberta": RobertaConfig(**SIZES, pad_token_id=1),
    "megatron-bert": MegatronBertConfig(**SIZES),
}
PLAIN = BertConfig(
    **SIZES, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, num_labels=3
)


def make_student(family: str, experts: tuple[int, int]):
    sizes = {"layers": 2, "hidden": 24, "heads": 4, "experts": experts, "num_relation_heads": 4}
    return build_student(student_config(BASES[family], **sizes), 0).eval().bert


@pytest.mark.parametrize("experts", [(1, 1), (1, 4), (4, 1), (2, 3)], ids=str)
@pytest.mark.parametrize("family", BASES)
def test_students_of_every_family_agree(family, experts, tmp_path) -> None:
    written = write_onnx(make_student(family, experts), tmp_path / "model.onnx")
    assert written.largest_difference < TOLERANCE
    assert written.output == "last_hidden_state"


def test_a_sparse_student_agrees(tmp_path) -> None:
    model = cut(elastic(sparsity_map=SPARSE_MAP), "50").eval()
    written = write_onnx(model.bert, tmp_path / "model.onnx")
    assert written.largest_difference < TOLERANCE


@pytest.mark.parametrize(
    ("head", "axes"),
    [(BertForSequenceClassification, 2), (BertForTokenClassification, 3)],
)
def test_heads_give_logits(head, axes, tmp_path) -> None:
    model = head(PLAIN).eval()
    written = write_onnx(model, tmp_path / "model.onnx")
    assert written.output == "logits"
    graph = onnx.load(tmp_path / "model.onnx").graph
    assert len(graph.output[0].type.tensor_type.shape.dim) == axes


@pytest.mark.parametrize("head", [MiniMoeForSequenceClassification, MiniMoeForTokenClassification])
def test_heads_of_students_with_experts_agree(head, tmp_path) -> None:
    config = make_student("bert", (2, 4)).config
    config.num_labels = 3
    written = write_onnx(head(config).eval(), tmp_path / "model.onnx")
    assert written.output == "logits" and written.largest_difference < TOLERANCE


def test_a_teacher_agrees_and_stays_as_it_was(tmp_path) -> None:
    model = BertModel(PLAIN).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    write_onnx(model, tmp_path / "model.onnx")
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_the_file_is_one_valid_model_with_free_batch_and_length(tmp_path) -> None:
    path = tmp_path / "model.onnx"
    written = write_onnx(make_student("bert", (1, 4)), path)
    assert [one.name for one in tmp_path.iterdir()] == ["model.onnx"]
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert [one.version for one in model.opset_import if one.domain == ""] == [OPSET]
    for value in model.graph.input:
        names = [axis.dim_param for axis in value.type.tensor_type.shape.dim]
        assert names == ["batch", "length"]
    assert tuple(value.name for value in model.graph.input) == written.inputs


def test_padding_costs_no_expert_a_token(tmp_path) -> None:
    student = make_student("bert", (1, 4))
    write_onnx(student, tmp_path / "model.onnx")
    session = InferenceSession(str(tmp_path / "model.onnx"))
    ids = torch.randint(1, 60, (2, 30), generator=torch.Generator().manual_seed(0))
    mask = torch.zeros_like(ids)
    mask[:, :3] = 1
    feed = {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}
    (hidden,) = session.run(None, {name: value.numpy() for name, value in feed.items()})
    assert (hidden[:, 3:] == 0).all() and (hidden[:, :3] != 0).any()


def test_a_file_that_differs_is_not_kept(tmp_path, monkeypatch) -> None:
    def broken(model):
        copied = traceable(model)
        with torch.no_grad():
            copied.encoder.layer[0].ffn_gate.bias[0] += 100.0
        return copied

    monkeypatch.setattr(onnx_export, "traceable", broken)
    with pytest.raises(ValueError, match=r"onnxruntime's last_hidden_state is .* from PyTorch's"):
        write_onnx(make_student("bert", (1, 4)), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("experts", [(1, 1), (2, 4)], ids=str)
@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_an_int8_file_is_smaller_and_near_and_leaves_routers_alone(
    family, experts, tmp_path
) -> None:
    model = make_student(family, experts)
    whole, small = tmp_path / "model.onnx", tmp_path / "int8.onnx"
    written = write_onnx(model, whole)
    quantized = write_quantized(whole, small, model, written)
    assert quantized.bytes == small.stat().st_size < quantized.float_bytes == whole.stat().st_size
    assert 0.99 < quantized.cosine < 1 and quantized.largest_difference > 0
    graph = onnx.load(small).graph
    routers = [node for node in graph.node if "_gate/" in node.name]
    assert bool(routers) is (experts != (1, 1))
    assert not [node.name for node in routers if "Integer" in node.op_type]
    # Of each layer: the maps of attention (plain, three are one) and feed-forward, of each expert.
    products = [node for node in graph.node if node.op_type == "MatMulInteger"]
    attention, feedforward = experts
    assert len(products) == 2 * ((4 * attention if attention > 1 else 2) + 2 * feedforward)


def test_an_onnx_file_is_called_like_its_model(tmp_path) -> None:
    model = BertForSequenceClassification(PLAIN).eval()
    written = write_onnx(model, tmp_path / "model.onnx")
    called = OnnxModel(tmp_path / "model.onnx", model.config, written)
    inputs = {"input_ids": torch.tensor([[2, 9, 3]]), "attention_mask": torch.ones(1, 3).bool()}
    inputs["token_type_ids"] = torch.zeros(1, 3, dtype=torch.int32)
    with torch.no_grad():
        wanted = model(**inputs | {"token_type_ids": torch.zeros(1, 3).long()}).logits
    assert torch.allclose(called(**inputs).logits, wanted, atol=1e-5)

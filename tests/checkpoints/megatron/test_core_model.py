"""Conversions against megatron-core's own BertModel, run on CPUs."""

import contextlib
from argparse import Namespace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from transformers import MegatronBertForPreTraining

from minimoe_dist.checkpoints.megatron.converting import to_hugging_face, to_megatron
from minimoe_dist.checkpoints.megatron.writing import Target
from minimoe_dist.megatron_files.arguments import ModelOverrides
from minimoe_dist.models.megatron.unpickling import load_rank
from tests.checkpoints.megatron.maker import SIZES, make_model
from tests.distributed import run_distributed

FILE = "model_optim_rng.pt"


def batch():
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(0, SIZES["vocab_size"], (2, 20), generator=generator)
    mask = torch.arange(20) < torch.tensor([[20], [13]])
    return ids, mask, (torch.arange(20) >= 9).long().expand_as(ids)


def core_model(config, rows):
    """megatron-core's model of its layers without Transformer Engine, this rank's part of it."""
    from megatron.core import parallel_state
    from megatron.core.models.bert.bert_layer_specs import bert_layer_local_spec
    from megatron.core.models.bert.bert_model import BertModel
    from megatron.core.tensor_parallel import get_cuda_rng_tracker
    from megatron.core.transformer.transformer_config import TransformerConfig

    # Its attention keeps a buffer on the current GPU, and a generator of that for its dropout.
    torch.cuda.current_device = lambda: "cpu"
    get_cuda_rng_tracker().fork = contextlib.nullcontext
    parallel_state.initialize_model_parallel(dist.get_world_size())
    own = TransformerConfig(
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        num_attention_heads=config.num_attention_heads,
        ffn_hidden_size=config.intermediate_size,
        layernorm_epsilon=config.layer_norm_eps,
        tensor_model_parallel_size=dist.get_world_size(),
        hidden_dropout=0.0,
        attention_dropout=0.0,
        use_cpu_initialization=True,
        gradient_accumulation_fusion=False,
        bias_dropout_fusion=False,
        masked_softmax_fusion=False,
        persist_layer_norm=False,
    )
    return BertModel(
        own,
        config.type_vocab_size,
        bert_layer_local_spec,
        rows,
        config.max_position_embeddings,
        share_embeddings_and_output_weights=True,
        parallel_output=False,
    ).eval()


@torch.no_grad()
def logits_of(model):
    ids, mask, segments = batch()
    words, next_sentence = model(ids, mask.long(), tokentype_ids=segments)
    return words[mask].contiguous(), next_sentence


def run_what_was_written(root):
    """What megatron-core computes with this rank's file."""
    state = load_rank(Path(root) / f"release/mp_rank_{dist.get_rank():02d}" / FILE)
    config = make_model().config
    model = core_model(config, 128)
    report = model.load_state_dict(state["model"], strict=False)
    missing = [name for name in report.missing_keys if "_extra_state" not in name]
    return missing, report.unexpected_keys, *(x.tolist() for x in logits_of(model))


def save_a_random_one(root):
    """Saves megatron-core's own random model, and returns what it computes."""
    torch.manual_seed(7 + dist.get_rank())
    config = make_model().config
    model = core_model(config, 128)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            # What every tensor rank holds whole is the same on all of them.
            whole = not getattr(parameter, "tensor_model_parallel", False)
            parameter.copy_(torch.randn_like(parameter) * 0.3 + ("layernorm.weight" in name))
            if whole:
                dist.broadcast(parameter, 0)
    path = Path(root) / f"iter_0000007/mp_rank_{dist.get_rank():02d}" / FILE
    path.parent.mkdir(parents=True)
    arguments = Namespace(
        num_attention_heads=config.num_attention_heads,
        layernorm_epsilon=config.layer_norm_eps,
        tensor_model_parallel_size=dist.get_world_size(),
    )
    torch.save({"args": arguments, "checkpoint_version": 3.0, "model": model.state_dict()}, path)
    return [x.tolist() for x in logits_of(model)]


@torch.no_grad()
def assert_computes(model, words, next_sentence):
    ids, mask, segments = batch()
    result = model.eval()(ids, attention_mask=mask.long(), token_type_ids=segments)
    for found, wanted in (
        (torch.tensor(words)[:, : SIZES["vocab_size"]], result.prediction_logits[mask]),
        (torch.tensor(next_sentence), result.seq_relationship_logits),
    ):
        torch.testing.assert_close(
            found[..., : wanted.shape[-1]], wanted[..., : found.shape[-1]], rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("ranks", [1, 2])
def test_megatron_core_computes_the_same_with_what_was_written(tmp_path, ranks):
    model = make_model()
    model.save_pretrained(tmp_path / "h")
    to_megatron(
        tmp_path / "h", tmp_path / "m", Target(layout="core", tensor_parallel_size=ranks,
                                               divisible_by=64 if ranks == 2 else 128),
        compare=False,
    )  # fmt: skip
    missing, unexpected, words, next_sentence = run_distributed(
        run_what_was_written, ranks, str(tmp_path / "m")
    )[0]
    assert (missing, unexpected) == ([], [])
    assert_computes(model, words, next_sentence)


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_folder_computes_the_same_as_megatron_core(tmp_path, ranks):
    words, next_sentence = run_distributed(save_a_random_one, ranks, str(tmp_path / "m"))[0]
    found = to_hugging_face(tmp_path / "m", tmp_path / "h", ModelOverrides(vocab_size=120))
    assert max(one.largest for one in found.differences.values()) < 1e-4
    model = MegatronBertForPreTraining.from_pretrained(tmp_path / "h")
    assert_computes(model, words, next_sentence)

"""The arguments that Megatron-LM reads from a checkpoint."""

import argparse
from dataclasses import asdict

import torch
from transformers import MegatronBertConfig

from ...megatron_files.arguments import Sizes
from .layout import Layout


def padded_vocab_size(vocab_size: int, divisible_by: int, tensor_parallel_size: int) -> int:
    """Returns how many rows Megatron gives the embeddings of a vocabulary."""
    step = divisible_by * tensor_parallel_size
    return -(-vocab_size // step) * step


def megatron_arguments(
    config: MegatronBertConfig,
    sizes: Sizes,
    *,
    layout: Layout,
    divisible_by: int,
    tensor_parallel_size: int,
    pipeline_parallel_size: int,
    dtype: torch.dtype,
    has_binary_head: bool,
    iteration: int | None,
) -> argparse.Namespace:
    """Makes the arguments that Megatron-LM reads from a checkpoint and compares with its own."""
    named = asdict(sizes)
    named.pop("type_vocab_size")
    return argparse.Namespace(
        **named | {"vocab_size": config.vocab_size},
        padded_vocab_size=sizes.vocab_size,
        make_vocab_size_divisible_by=divisible_by,
        encoder_num_layers=sizes.num_layers,
        kv_channels=sizes.hidden_size // sizes.num_attention_heads,
        seq_length=sizes.max_position_embeddings,
        encoder_seq_length=sizes.max_position_embeddings,
        layernorm_epsilon=config.layer_norm_eps,
        hidden_dropout=config.hidden_dropout_prob,
        attention_dropout=config.attention_probs_dropout_prob,
        init_method_std=config.initializer_range,
        openai_gelu=config.hidden_act == "gelu_new",
        bias_gelu_fusion=config.hidden_act == "gelu_pytorch_tanh",
        position_embedding_type="learned_absolute",
        add_position_embedding=True,
        add_bias_linear=True,
        normalization="LayerNorm",
        swiglu=False,
        untie_embeddings_and_output_weights=False,
        bert_binary_head=has_binary_head,
        tokenizer_type="BertWordPieceLowerCase",
        use_legacy_models=layout == "legacy",
        transformer_impl="transformer_engine" if layout == "transformer_engine" else "local",
        tensor_model_parallel_size=tensor_parallel_size,
        # Its name up to checkpoint version 2.
        model_parallel_size=tensor_parallel_size,
        pipeline_model_parallel_size=pipeline_parallel_size,
        params_dtype=dtype,
        fp16=dtype == torch.float16,
        bf16=dtype == torch.bfloat16,
        iteration=iteration or 0,
        consumed_train_samples=0,
        consumed_valid_samples=0,
        num_experts=None,
    )

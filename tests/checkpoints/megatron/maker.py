"""Megatron checkpoints made from a transformers model, number by number where order matters.

Shares nothing with the converter: what Megatron's layers do with their tensors is written down here
once more, as loops over ranks, heads and rows.
"""

from argparse import Namespace
from pathlib import Path

import torch
from transformers import MegatronBertConfig, MegatronBertForPreTraining

SIZES = {
    "vocab_size": 120,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
    "layer_norm_eps": 1e-5,
    "initializer_range": 0.3,
}


def make_model(seed=0, **changes):
    """A random model whose every tensor is random: a swap of biases or norms must show."""
    torch.manual_seed(seed)
    model = MegatronBertForPreTraining(MegatronBertConfig(**SIZES | changes)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.copy_(torch.randn_like(parameter) * 0.3 + ("ln.weight" in name))
    return model


def qkv_rows(version, heads, size):
    """Which rows of Q (0), K (1) and V (2) a rank's fused tensor holds, one after the other."""
    if version == 0:
        return [(part, h * size + d) for part in range(3) for h in heads for d in range(size)]
    if version == 1:
        return [(part, h * size + d) for h in heads for d in range(size) for part in range(3)]
    return [(part, h * size + d) for h in heads for part in range(3) for d in range(size)]


def pad_rows(table, rows, fill):
    extra = torch.full((rows - table.shape[0], *table.shape[1:]), fill, dtype=table.dtype)
    return torch.cat([table, extra])


def rank_tensors(
    state, config, version, tensor, pipeline, tensor_rank, pipeline_rank, padded, fill
):
    """A rank's own tensors under names of megatron-core, as {name: tensor}."""
    size = config.hidden_size // config.num_attention_heads
    per_rank = config.num_attention_heads // tensor
    heads = range(tensor_rank * per_rank, (tensor_rank + 1) * per_rank)
    columns = [h * size + d for h in heads for d in range(size)]
    width = config.intermediate_size // tensor
    neurons = range(tensor_rank * width, (tensor_rank + 1) * width)
    share = padded // tensor
    rows = slice(tensor_rank * share, (tensor_rank + 1) * share)
    layers = config.num_hidden_layers // pipeline
    last = pipeline_rank == pipeline - 1
    words = pad_rows(state["bert.embeddings.word_embeddings.weight"], padded, fill)[rows].clone()
    made = {}
    if pipeline_rank == 0:
        made["embedding.word_embeddings.weight"] = words
        for ours, theirs in (("position", "position"), ("tokentype", "token_type")):
            made[f"embedding.{ours}_embeddings.weight"] = state[
                f"bert.embeddings.{theirs}_embeddings.weight"
            ]
    for local in range(layers):
        to = f"encoder.layers.{local}."
        of = f"bert.encoder.layer.{pipeline_rank * layers + local}."
        for kind in ("weight", "bias"):
            made[to + "input_layernorm." + kind] = state[of + "attention.ln." + kind]
            parts = [state[f"{of}attention.self.{x}.{kind}"] for x in ("query", "key", "value")]
            fused = [parts[part][row] for part, row in qkv_rows(version, heads, size)]
            made[to + "self_attention.linear_qkv." + kind] = torch.stack(fused)
            made[to + "pre_mlp_layernorm." + kind] = state[of + "ln." + kind]
            inner = state[of + "intermediate.dense." + kind]
            made[to + "mlp.linear_fc1." + kind] = torch.stack([inner[n] for n in neurons])
        out = state[of + "attention.output.dense.weight"]
        made[to + "self_attention.linear_proj.weight"] = torch.stack(
            [out[:, c] for c in columns], 1
        )
        made[to + "self_attention.linear_proj.bias"] = state[of + "attention.output.dense.bias"]
        down = state[of + "output.dense.weight"]
        made[to + "mlp.linear_fc2.weight"] = torch.stack([down[:, n] for n in neurons], 1)
        made[to + "mlp.linear_fc2.bias"] = state[of + "output.dense.bias"]
    if last:
        bias = pad_rows(state["cls.predictions.bias"], padded, fill)[rows].clone()
        made |= {
            "encoder.final_layernorm.weight": state["bert.encoder.ln.weight"],
            "encoder.final_layernorm.bias": state["bert.encoder.ln.bias"],
            "pooler.dense.weight": state["bert.pooler.dense.weight"],
            "pooler.dense.bias": state["bert.pooler.dense.bias"],
            "lm_head.dense.weight": state["cls.predictions.transform.dense.weight"],
            "lm_head.dense.bias": state["cls.predictions.transform.dense.bias"],
            "lm_head.layer_norm.weight": state["cls.predictions.transform.LayerNorm.weight"],
            "lm_head.layer_norm.bias": state["cls.predictions.transform.LayerNorm.bias"],
            "output_layer.bias": bias,
            "binary_head.weight": state["cls.seq_relationship.weight"],
            "binary_head.bias": state["cls.seq_relationship.bias"],
        }
        if pipeline > 1:
            made["output_layer.weight"] = words.clone()
    return made


def legacy_names(made, encoder, attention, norm="layernorm"):
    """The same tensors nested as Megatron-LM's old models save them."""
    language, head = {encoder: {}}, {}
    model = {"language_model": language}
    renamed = {
        "self_attention.linear_qkv": f"{attention}.query_key_value",
        "self_attention.linear_proj": f"{attention}.dense",
        "pre_mlp_layernorm": f"post_attention_{norm}",
        "input_layernorm": f"input_{norm}",
        "mlp.linear_fc1": "mlp.dense_h_to_4h",
        "mlp.linear_fc2": "mlp.dense_4h_to_h",
        "final_layernorm": f"final_{norm}",
    }
    for name, value in made.items():
        if name.startswith("embedding."):
            table = name.split(".")[1]
            language.setdefault("embedding", {})[table] = {"weight": value}
        elif name.startswith("encoder."):
            own = name.removeprefix("encoder.")
            for common, old in renamed.items():
                own = own.replace(common, old)
            language[encoder][own] = value
        elif name.startswith("pooler."):
            language.setdefault("pooler", {})[name.removeprefix("pooler.")] = value
        elif name == "output_layer.weight":
            model["word_embeddings_for_head"] = {"weight": value}
        elif name == "output_layer.bias":
            head["bias"] = value
        elif name.startswith("lm_head."):
            head[name.removeprefix("lm_head.").replace("layer_norm", norm)] = value
        else:
            model.setdefault("binary_head", {})[name.split(".")[1]] = value
    if head:
        model["lm_head"] = head
    return model


def engine_names(made):
    """The same tensors as Transformer Engine's layers name them, with their extra state."""
    named = {}
    for name, value in made.items():
        own = name.replace("input_layernorm.", "self_attention.linear_qkv.layer_norm_")
        if "lm_head" not in name:
            own = own.replace("pre_mlp_layernorm.", "mlp.linear_fc1.layer_norm_")
        named[own] = value
    for name in list(named):
        if name.endswith("linear_fc1.weight"):
            named[name.replace("weight", "_extra_state")] = torch.zeros(3, dtype=torch.uint8)
    return named


def make_checkpoint(
    root,
    model,
    *,
    version=3.0,
    layout="legacy",
    tensor=1,
    pipeline=1,
    padded=None,
    fill=0.0,
    folder="release",
    arguments=True,
    old_names=None,
    norm="layernorm",
    tracker=True,
    **more,
):
    """Writes the files of all ranks and returns ``root``."""
    config = model.config
    state = {name: value.detach() for name, value in model.state_dict().items()}
    padded = padded or -(-config.vocab_size // (8 * tensor)) * 8 * tensor
    old = version < 2 if old_names is None else old_names
    for p in range(pipeline):
        for t in range(tensor):
            made = rank_tensors(state, config, version, tensor, pipeline, t, p, padded, fill)
            if layout == "legacy":
                names = ("transformer", "attention") if old else ("encoder", "self_attention")
                made = legacy_names(made, *names, norm)
            elif layout == "transformer_engine":
                made = engine_names(made)
            saved = {"model": made, "iteration": 100, **more}
            if version:
                saved["checkpoint_version"] = version
            if arguments:
                saved["args"] = make_arguments(config, padded, tensor, pipeline)
            name = f"mp_rank_{t:02d}" + (f"_{p:03d}" if pipeline > 1 else "")
            path = Path(root) / folder / name / "model_optim_rng.pt"
            path.parent.mkdir(parents=True)
            torch.save(saved, path)
    if tracker:
        text = folder if folder == "release" else str(int(folder.removeprefix("iter_")))
        (Path(root) / "latest_checkpointed_iteration.txt").write_text(text)
    return Path(root)


def make_arguments(config, padded, tensor, pipeline, **more):
    return Namespace(
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        num_attention_heads=config.num_attention_heads,
        ffn_hidden_size=config.intermediate_size,
        max_position_embeddings=config.max_position_embeddings,
        padded_vocab_size=padded,
        layernorm_epsilon=config.layer_norm_eps,
        tensor_model_parallel_size=tensor,
        pipeline_model_parallel_size=pipeline,
        params_dtype=torch.float32,
        data_path=["corpora/wudao_text_sentence"],
        **more,
    )


def edit_rank(path, change):
    """Loads a rank's file, changes it and saves it again."""
    state = torch.load(path, weights_only=False)
    change(state)
    torch.save(state, path)


def weights_of(model):
    """The model's tensors, each once."""
    left_out = ("cls.predictions.decoder.", "position_ids")
    return {
        name: value.detach()
        for name, value in model.state_dict().items()
        if not any(part in name for part in left_out)
    }

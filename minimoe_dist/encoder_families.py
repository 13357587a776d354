"""Describes the encoders that can teach, one record each, without torch.

A record says where an encoder keeps the maps to queries, keys and values, and what a student of it
is like. To teach with another of Hugging Face's encoders, add its record: tests then compare its
signals bit for bit with the uncut model's.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple


class StoredPlace(NamedTuple):
    """Where a checkpoint has a tensor: one of ``parts`` equal parts of a tensor's rows, from 0."""

    name: str
    part: int = 0
    parts: int = 1

    def whole(self, shape: tuple[int, ...] | None) -> tuple[int, ...] | None:
        """Returns the shape of what is stored, of the tensor's own; None where that is unknown."""
        return shape and (shape[0] * self.parts, *shape[1:])


@dataclass(frozen=True)
class StoredNames:
    """What a checkpoint calls weights that Hugging Face's class renames and splits on reading.

    Attributes:
        renamed: parts of names in the model -> in a checkpoint, in the order of replacing.
        joined: path in a layer of a checkpoint -> paths in the model's layer of the maps whose rows
            it has, one behind the other and as many of each.
        prefix: that may stand before names in a checkpoint too, instead of the family's.
    """

    renamed: Mapping[str, str]
    joined: Mapping[str, tuple[str, ...]]
    prefix: str | None = None

    def place_of(self, name: str) -> StoredPlace:
        """Returns where a tensor is, by its name in the model."""
        part, parts = 0, 1
        for stored, paths in self.joined.items():
            for number, path in enumerate(paths):
                if f".{path}." in name:
                    name, part, parts = name.replace(path, stored), number, len(paths)
        for mine, theirs in self.renamed.items():
            name = name.replace(mine, theirs)
        return StoredPlace(name, part, parts)


@dataclass(frozen=True)
class EncoderFamily:
    """A family of encoders.

    Attributes:
        student: what a student of it is built like: one of `model_description.FAMILIES`.
        prefix: of the encoder's weights where a head stands beside it.
        layers: path of the list of layers in the encoder.
        shared_layer: path of the one layer that is run again and again; then nothing is at
            ``layers``.
        maps: paths in a layer of the maps to queries, keys and values; one path where they are one
            map, of thirds in this order.
        stored: its names in a checkpoint, where that has others; both kinds are read.
        norms: path in the encoder of the norm behind its last layer, and path in a layer of the
            one before the maps, where layers normalise their input.
        words: path of the word embeddings.
        reads_segments: whether the encoder was trained with segment ids.
        names: our names of sizes -> those in its ``config.json``, where they differ.
        least_layers: fewer it cannot run in front of the maps.
        read_by: path of a parameter -> path of the module that reads it past its holder.
        feedforward: paths in a layer of the first and second map of its feed-forward block; None
            where that has gates between them.
        feedforward_norm: path in a layer of the norm before that block, where layers normalise
            their input.
        positions: what ``position_embedding_type`` may be, where that is given.
        computes: fields of ``config.json`` that its class does not read -> what it computes with;
            other values would be misread.
        position_padding: id behind which positions begin, where that is not what the configuration
            says of padding.
        only_teaches: whether students are not built like it.
        is_alike: whether it computes as the family that its students are of nevertheless, from
            weights of the same names, so that our own encoder can run it too.
    """

    student: str
    prefix: str
    layers: str = "encoder.layer"
    shared_layer: str | None = None
    maps: tuple[str, ...] = (
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
    )
    stored: StoredNames | None = None
    norms: tuple[str, str] | None = None
    words: str = "embeddings.word_embeddings"
    reads_segments: bool = False
    names: Mapping[str, str] = field(default_factory=dict)
    least_layers: int = 0
    read_by: Mapping[str, str] = field(default_factory=dict)
    feedforward: tuple[str, str] | None = ("intermediate.dense", "output.dense")
    feedforward_norm: str | None = None
    positions: tuple[str, ...] = ("absolute",)
    computes: Mapping[str, Any] = field(default_factory=dict)
    position_padding: int | None = None
    only_teaches: bool = True
    is_alike: bool = False

    @property
    def prefixes(self) -> tuple[str, ...]:
        """What may stand before the encoder's names in a checkpoint."""
        other = None if self.stored is None else self.stored.prefix
        return (self.prefix,) if other is None else (self.prefix, other)

    def places_of(self, name: str) -> tuple[StoredPlace, ...]:
        """Returns where a checkpoint may have a tensor, by its name in the model."""
        own = StoredPlace(name)
        return (own,) if self.stored is None else (own, self.stored.place_of(name))


def _maps(holder: str, *names: str) -> tuple[str, ...]:
    return tuple(f"{holder}.{name}" for name in names)


_ROTARY_MAPS = _maps("self_attn", "q_proj", "k_proj", "v_proj")
_NUMBERED_NORMS = {
    "layers.": "encoder.layers.",
    "embeddings.LayerNorm": "emb_ln",
    "post_attention_layernorm": "norm1",
    "post_mlp_layernorm": "norm2",
}


def _rotary(
    student: str,
    prefix: str,
    stored: StoredNames,
    computes: Mapping[str, Any],
    feedforward: tuple[str, str] | None = None,
) -> EncoderFamily:
    """BERT's order of norms, and Llama's names of maps, which checkpoints join."""
    return EncoderFamily(
        student,
        prefix,
        layers="layers",
        maps=_ROTARY_MAPS,
        stored=stored,
        feedforward=feedforward,
        positions=("rope", "rotary"),
        computes=computes,
    )


ENCODER_FAMILIES: dict[str, EncoderFamily] = {
    "bert": EncoderFamily("bert", "bert.", reads_segments=True, only_teaches=False),
    "roberta": EncoderFamily("roberta", "roberta.", only_teaches=False),
    "megatron-bert": EncoderFamily(
        "megatron-bert",
        "bert.",
        norms=("encoder.ln", "attention.ln"),
        feedforward_norm="ln",
        reads_segments=True,
        only_teaches=False,
    ),
    "xlm-roberta": EncoderFamily("roberta", "roberta.", is_alike=True),
    "camembert": EncoderFamily("roberta", "roberta.", is_alike=True),
    "data2vec-text": EncoderFamily("roberta", "data2vec_text.", is_alike=True),
    "electra": EncoderFamily("bert", "electra.", reads_segments=True, is_alike=True),
    "ernie": EncoderFamily("bert", "ernie.", reads_segments=True, is_alike=True),
    "mpnet": EncoderFamily(
        "roberta", "mpnet.", maps=_maps("attention.attn", "q", "k", "v"), position_padding=1
    ),
    "distilbert": EncoderFamily(
        "bert",
        "distilbert.",
        layers="transformer.layer",
        maps=_maps("attention", "q_lin", "k_lin", "v_lin"),
        feedforward=("ffn.lin1", "ffn.lin2"),
        names={
            "hidden_size": "dim",
            "num_hidden_layers": "n_layers",
            "num_attention_heads": "n_heads",
            "intermediate_size": "hidden_dim",
            "hidden_dropout_prob": "dropout",
        },
    ),
    "albert": EncoderFamily(
        "bert",
        "albert.",
        shared_layer="encoder.albert_layer_groups.0.albert_layers.0",
        maps=_maps("attention", "query", "key", "value"),
        reads_segments=True,
        feedforward=("ffn", "ffn_output"),
    ),
    "deberta-v2": EncoderFamily(
        "bert",
        "deberta.",
        maps=_maps("attention.self", "query_proj", "key_proj", "value_proj"),
        least_layers=1,
        read_by={"encoder.rel_embeddings.weight": "encoder"},
    ),
    "modernbert": EncoderFamily(
        "bert",
        "model.",
        layers="layers",
        maps=("attn.Wqkv",),
        norms=("final_norm", "attn_norm"),
        feedforward=None,
        words="embeddings.tok_embeddings",
        positions=("absolute", "sans_pos"),  # whatever is said, they are rotary
    ),
    "rembert": EncoderFamily("bert", "rembert.", reads_segments=True),
    "xlm-roberta-xl": EncoderFamily(
        "roberta",
        "roberta.",
        norms=("encoder.LayerNorm", "attention.self_attn_layer_norm"),
        feedforward_norm="LayerNorm",
    ),
    "eurobert": EncoderFamily(
        "bert",
        "model.",
        layers="layers",
        maps=_maps("self_attn", "q_proj", "k_proj", "v_proj"),
        norms=("norm", "input_layernorm"),
        feedforward=None,
        words="embed_tokens",
    ),
    "roberta-prelayernorm": EncoderFamily(
        "roberta",
        "roberta_prelayernorm.",
        norms=("LayerNorm", "attention.LayerNorm"),
        feedforward_norm="intermediate.LayerNorm",
    ),
    # These have rotary positions, and learnt from text whose segments are all the same.
    "gte": _rotary(
        "bert",
        "gte.",
        StoredNames(
            {
                "layers.": "encoder.layer.",
                "self_attn.o_proj": "attention.o_proj",
                "post_attention_layernorm": "attn_ln",
                "post_mlp_layernorm": "mlp_ln",
            },
            {
                "attention.qkv_proj": _ROTARY_MAPS,
                "mlp.up_gate_proj": ("mlp.up_proj", "mlp.gate_proj"),
            },
            prefix="new.",
        ),
        computes={"layer_norm_type": "layer_norm", "logn_attention_scale": False},
    ),
    "nomic_bert": _rotary(
        "bert",
        "nomic_bert.",
        StoredNames(
            {
                **_NUMBERED_NORMS,
                "self_attn.o_proj": "attn.out_proj",
                "mlp.up_proj": "mlp.fc11",
                "mlp.gate_proj": "mlp.fc12",
                "mlp.down_proj": "mlp.fc2",
            },
            {"attn.Wqkv": _ROTARY_MAPS},
        ),
        computes={
            "prenorm": False,
            "use_rms_norm": False,
            "parallel_block": False,
            "rotary_emb_base": 1000,
            "rotary_emb_fraction": 1.0,
            "rotary_emb_interleaved": False,
            "rotary_emb_scale_base": None,
            "activation_function": "swiglu",
        },
    ),
    "jina_embeddings_v3": _rotary(
        "roberta",
        "roberta.",
        StoredNames(
            {**_NUMBERED_NORMS, "self_attn.o_proj": "mixer.out_proj"},
            {"mixer.Wqkv": _ROTARY_MAPS},
        ),
        computes={"rotary_emb_base": 20_000},
        feedforward=("mlp.fc1", "mlp.fc2"),
    ),
}

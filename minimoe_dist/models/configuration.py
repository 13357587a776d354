"""Configuration of MiniMoE and MiniLM students as Hugging Face models."""

from typing import Any

from transformers.configuration_utils import PreTrainedConfig

# The encoders a student may be built like, by transformers' names of them.
FAMILIES = ("bert", "roberta", "megatron-bert")


def family_of(config: Any) -> str:
    """Returns a Hugging Face configuration's family: its type, or a student's ``family``."""
    model_type = getattr(config, "model_type", "")
    family = getattr(config, "family", model_type)
    assert family in FAMILIES, family
    return str(family)


class MiniMoeConfig(PreTrainedConfig):
    """Configuration of a MiniMoE student; sizes are those of one expert.

    Args:
        family: the encoder that the student is built like. ``bert``; ``roberta``, whose positions
            begin behind the padding id and which has one segment; ``megatron-bert``, which
            normalises the input of each block instead of its output.
        attention_experts: x of ``moe: x,y``; 1 means a plain block.
        feedforward_experts: y of it.
        num_attention_heads: of one expert (12 heads of H/12).
        intermediate_size: neurons of one expert (4H).
        num_relation_heads: relation heads the student was distilled with.
        relation_projections: whether queries, keys and values for the relation loss come from three
            H → H maps on the final hidden states (MoE) or from the last layer itself (dense).
        router_noise: ε of the uniform noise in [1 − ε, 1 + ε] added to router logits in training.
        route_padding: route padding positions and count them in the balance, as the published
            implementation does.
        teacher_hidden_size: width that a TinyBERT student's states are mapped to; None for others.
        with_pooler: whether the checkpoint has BERT's pooler.
        state_width: width that last states are mapped to, of a student that learns its teacher's
            beside relations; None for others, and of exports, which leave the map out.
    """

    model_type = "minimoe"

    def __init__(
        self,
        vocab_size: int = 30522,
        hidden_size: int = 384,
        num_hidden_layers: int = 3,
        num_attention_heads: int = 12,
        intermediate_size: int = 1536,
        attention_experts: int = 1,
        feedforward_experts: int = 4,
        hidden_act: str = "gelu",
        hidden_dropout_prob: float = 0.1,
        attention_probs_dropout_prob: float = 0.1,
        max_position_embeddings: int = 512,
        type_vocab_size: int = 2,
        initializer_range: float = 0.02,
        layer_norm_eps: float = 1e-12,
        pad_token_id: int | None = 0,
        num_relation_heads: int = 32,
        relation_projections: bool = True,
        router_noise: float = 0.1,
        route_padding: bool = False,
        with_pooler: bool = False,
        family: str = "bert",
        teacher_hidden_size: int | None = None,
        state_width: int | None = None,
        **kwargs: Any,
    ) -> None:
        assert family in FAMILIES, family
        assert family != "roberta" or pad_token_id is not None, "its positions are counted from it"
        assert hidden_size % num_attention_heads == 0, (hidden_size, num_attention_heads)
        self.family = family
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        self.num_hidden_layers = num_hidden_layers
        self.num_attention_heads = num_attention_heads
        self.intermediate_size = intermediate_size
        self.attention_experts = attention_experts
        self.feedforward_experts = feedforward_experts
        self.hidden_act = hidden_act
        self.hidden_dropout_prob = hidden_dropout_prob
        self.attention_probs_dropout_prob = attention_probs_dropout_prob
        self.max_position_embeddings = max_position_embeddings
        self.type_vocab_size = type_vocab_size
        self.initializer_range = initializer_range
        self.layer_norm_eps = layer_norm_eps
        self.pad_token_id = pad_token_id
        self.num_relation_heads = num_relation_heads
        self.relation_projections = relation_projections
        self.router_noise = router_noise
        self.route_padding = route_padding
        self.with_pooler = with_pooler
        self.teacher_hidden_size = teacher_hidden_size
        self.state_width = state_width
        super().__init__(pad_token_id=pad_token_id, **kwargs)

    @property
    def is_dense(self) -> bool:
        """Whether every block is plain, so that the student is a BertModel."""
        return self.attention_experts == 1 and self.feedforward_experts == 1

    @property
    def sub_models(self) -> tuple[str, ...]:
        """Sub-models that are trained together with the whole; of sliceable students alone."""
        return ()

    @property
    def normalizes_input(self) -> bool:
        """Whether a block's LayerNorm stands before it (pre-LayerNorm), not behind the residual."""
        return self.family == "megatron-bert"

    @property
    def reads_segments(self) -> bool:
        """Whether segment ids have a meaning; RoBERTa has one segment, whatever it is given."""
        return self.family != "roberta"


def router_sizes(config: MiniMoeConfig) -> list[int]:
    """Returns each router's number of experts, in the order in which the routers run."""
    experts = (config.attention_experts, config.feedforward_experts)
    return [count for count in experts if count > 1] * config.num_hidden_layers


def router_places(config: MiniMoeConfig) -> list[tuple[int, str]]:
    """Returns each router's layer, counted from 1, and block, in the order of `router_sizes`."""
    blocks = {
        "attention": config.attention_experts,
        "feed-forward": config.feedforward_experts,
    }
    routed = [block for block, count in blocks.items() if count > 1]
    return [(layer, block) for layer in range(1, config.num_hidden_layers + 1) for block in routed]

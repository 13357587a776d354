"""TinyBERT's students, which map states to the teacher's width, and its teachers, which run whole.

Both give the :class:`~minimoe_dist.objectives.tinybert.States` that the objective compares. Keys of
the student's map are the published ones (``hidden_transform``).

Shapes: B samples, S positions, H hidden size of the student, W the teacher's width.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertModel, MegatronBertModel, PreTrainedConfig, RobertaModel

from ..objectives.tinybert import States
from .blocks import EncoderOutput, StudentOutput, StudentPass
from .configuration import MiniMoeConfig
from .errors import UserError
from .mlm_head import MaskedLmPass
from .moebert import MiniMoeForRelations, MiniMoeModel, MiniMoePreTrainedModel
from .pretrained import encoder_dtype, load_encoder, read_encoder_config
from .teacher import FrozenModel


class MiniMoeForStates(StudentPass, MiniMoePreTrainedModel):
    """The encoder with a linear map of its states to the teacher's width.

    Raises:
        UserError: the configuration does not say the teacher's width.
    """

    def __init__(self, config: MiniMoeConfig) -> None:
        super().__init__(config)
        if config.teacher_hidden_size is None:
            raise UserError("teacher_hidden_size: none; TinyBERT maps states to it: give one")
        self.bert = MiniMoeModel(config)
        self.hidden_transform = nn.Linear(config.hidden_size, config.teacher_hidden_size)
        self.post_init()

    def encode(self, input_ids: Tensor, **inputs: Any) -> EncoderOutput:
        """Runs the encoder, with all outputs that States are made of."""
        encoded: EncoderOutput = self.bert(
            input_ids, output_states=True, output_routers=True, **inputs
        )
        return encoded

    def student_output(self, encoded: EncoderOutput) -> StudentOutput:
        """Maps the states to the teacher's width."""
        assert encoded.queries_keys_values is not None
        queries, keys, _ = encoded.queries_keys_values
        embeddings = self.hidden_transform(encoded.embedding_output)
        hidden = self.hidden_transform(encoded.last_hidden_state)
        states = States(embeddings, hidden, queries, keys)
        return StudentOutput(routers=encoded.routers or (), states=states)


class MiniMoeForStatesAndMaskedLM(MaskedLmPass, MiniMoeForStates):
    """TinyBERT's student with a masked-LM head."""


class _StudentStates(nn.Module):
    """States of one of our own encoders."""

    def __init__(self, encoder: MiniMoeModel) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None
    ) -> States:
        encoded = self.encoder(
            input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids,
            output_states=True,
        )  # fmt: skip
        queries, keys, _ = encoded.queries_keys_values
        return States(encoded.embedding_output, encoded.last_hidden_state, queries, keys)


class _EncoderStates(nn.Module):
    """States of a Hugging Face encoder, read where they are made: no other layer's are kept."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.reads_segments = not isinstance(encoder, RobertaModel)
        self._outputs: dict[str, Tensor] = {}
        attention = encoder.get_submodule("encoder.layer")[-1].attention.self  # type: ignore[index]
        for name, module in (
            ("embeddings", encoder.get_submodule("embeddings")),
            ("queries", attention.query),
            ("keys", attention.key),
        ):
            module.register_forward_hook(self._record_as(name))

    def _record_as(self, name: str) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            self._outputs[name] = output

        return hook

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None
    ) -> States:
        segments = {"token_type_ids": token_type_ids} if self.reads_segments else {}
        hidden = self.encoder(
            input_ids=input_ids, attention_mask=attention_mask, **segments
        ).last_hidden_state
        outputs, self._outputs = self._outputs, {}
        return States(outputs["embeddings"], hidden, outputs["queries"], outputs["keys"])


class StateTeacher(FrozenModel):
    """A frozen teacher for TinyBERT.

    Attributes:
        config: the model's.
        hidden_size: W, width of its states.
        num_heads: attention heads; a student needs as many.
    """

    def __init__(self, states: nn.Module, config: PreTrainedConfig) -> None:
        super().__init__()
        self.states = states
        self.config = config
        self.hidden_size: int = config.hidden_size
        self.num_heads: int = config.num_attention_heads
        self.freeze()

    @torch.no_grad()
    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None = None
    ) -> States:
        """Computes the states of a batch, of the teacher's type, without gradient.

        Args:
            input_ids: int64 [B, S].
            attention_mask: bool or int [B, S], non-zero where a position is not padding.
            token_type_ids: int64 [B, S] segments, or None; not used by RoBERTa.
        """
        states: States = self.states(input_ids, attention_mask.bool(), token_type_ids)
        return states


def state_teacher_of(model: nn.Module) -> StateTeacher:
    """Makes a TinyBERT teacher of a loaded encoder, which it takes over."""
    if isinstance(model, MiniMoeForRelations):
        model = model.bert
    if isinstance(model, MiniMoeModel):
        return StateTeacher(_StudentStates(model), model.config)
    assert isinstance(model, BertModel | RobertaModel | MegatronBertModel), type(model).__name__
    return StateTeacher(_EncoderStates(model), model.config)


def load_state_teacher(
    path: str,
    *,
    dtype: torch.dtype | str = "float32",
    device: torch.device | str = "cpu",
) -> StateTeacher:
    """Loads a TinyBERT teacher; arguments and errors are those of ``load_teacher``."""
    from ..model_paths import resolve_model_path

    folder, device = resolve_model_path(path), torch.device(device)
    config = read_encoder_config(path, folder)
    model = load_encoder(path, folder, config, encoder_dtype(dtype, device))
    return state_teacher_of(model).to(device)

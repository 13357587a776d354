"""The students as transformers' common tests want to be told of them.

This file is copied beside those tests (`test_common.py` does it) and is run there by pytest. `Bert`
goes along as the measure: what fails on it is no fault of a student's.
"""

import copy
import unittest

from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
)
from transformers.models.auto import modeling_auto

import minimoe_dist.models.auto  # noqa: F401 (transformers' automatic classes)
from minimoe_dist.models.configuration import MiniMoeConfig
from minimoe_dist.models.elastic import ElasticModel
from minimoe_dist.models.elastic_configuration import ElasticConfig
from minimoe_dist.models.masked_lm import ElasticForMaskedLM, MiniMoeForMaskedLM
from minimoe_dist.models.moebert import MiniMoeModel
from minimoe_dist.models.task_heads import (
    ElasticForSequenceClassification,
    ElasticForTokenClassification,
    MiniMoeForSequenceClassification,
    MiniMoeForTokenClassification,
)

# These three are transformers'.
from .test_configuration_common import ConfigTester  # type: ignore[import-not-found]
from .test_modeling_common import (  # type: ignore[import-not-found]
    ModelTesterMixin,
    ids_tensor,
    random_attention_mask,
)

# The tests find out by these tables which labels a class takes.
for kind, name in {"minimoe": "MiniMoe", "minimoe-elastic": "Elastic"}.items():
    for table, head in (
        (modeling_auto.MODEL_MAPPING_NAMES, "Model"),
        (
            modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
            "ForSequenceClassification",
        ),
        (modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES, "ForMaskedLM"),
        (modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES, "ForTokenClassification"),
    ):
        table[kind] = name + head

BATCH, LENGTH = 5, 7
SIZES = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "type_vocab_size": 16,
}


class Tester:
    """What the tests read: sizes, a configuration, inputs."""

    batch_size, seq_length, is_training = BATCH, LENGTH, True
    key_length = encoder_seq_length = LENGTH
    hidden_size, num_hidden_layers, num_attention_heads = 32, 2, 4

    def __init__(self, config_class, more) -> None:
        self._config = config_class(**SIZES, **more)

    def get_config(self):
        return copy.deepcopy(self._config)

    def prepare_config_and_inputs_for_common(self):
        shape = [BATCH, LENGTH]
        inputs = {
            "input_ids": ids_tensor(shape, SIZES["vocab_size"]),
            "token_type_ids": ids_tensor(shape, SIZES["type_vocab_size"]),
            "attention_mask": random_attention_mask(shape),
        }
        return self.get_config(), inputs


class _Common(ModelTesterMixin):
    more = {}  # noqa: RUF012

    def setUp(self):
        self.model_tester = Tester(self.config_class, self.more)

    def test_config(self):
        fields = {"hidden_size": 32, "num_attention_heads": 4}
        ConfigTester(self, config_class=self.config_class, **fields).run_common_tests()


class BertTest(_Common, unittest.TestCase):
    config_class = BertConfig
    all_model_classes = (
        BertModel,
        BertForMaskedLM,
        BertForSequenceClassification,
        BertForTokenClassification,
    )


class MiniMoeTest(_Common, unittest.TestCase):
    config_class = MiniMoeConfig
    more = {"attention_experts": 2, "feedforward_experts": 4}  # noqa: RUF012
    all_model_classes = (
        MiniMoeModel,
        MiniMoeForMaskedLM,
        MiniMoeForSequenceClassification,
        MiniMoeForTokenClassification,
    )


class ElasticTest(_Common, unittest.TestCase):
    config_class = ElasticConfig
    all_model_classes = (
        ElasticModel,
        ElasticForMaskedLM,
        ElasticForSequenceClassification,
        ElasticForTokenClassification,
    )

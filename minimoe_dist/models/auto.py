"""Transformers' automatic classes, which know the students as soon as this module is imported.

``import minimoe_dist.models.auto`` is all that a program needs to load students through
``AutoModel`` without ``trust_remote_code``; whoever imports the classes from here knows that they
do. It is not done by ``import minimoe_dist``, which brings neither torch nor transformers along.
"""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from .configuration import MiniMoeConfig
from .elastic import ElasticModel
from .elastic_configuration import ElasticConfig
from .masked_lm import ElasticForMaskedLM, MiniMoeForMaskedLM
from .moebert import MiniMoeModel
from .task_heads import (
    ElasticForSequenceClassification,
    ElasticForTokenClassification,
    MiniMoeForSequenceClassification,
    MiniMoeForTokenClassification,
)

__all__ = [
    "AutoConfig",
    "AutoModel",
    "AutoModelForMaskedLM",
    "AutoModelForSequenceClassification",
    "AutoModelForTokenClassification",
]

for _config in (MiniMoeConfig, ElasticConfig):
    AutoConfig.register(_config.model_type, _config, exist_ok=True)
for _automatic, _moe_class, _elastic_class in (
    (AutoModel, MiniMoeModel, ElasticModel),
    (AutoModelForMaskedLM, MiniMoeForMaskedLM, ElasticForMaskedLM),
    (
        AutoModelForSequenceClassification,
        MiniMoeForSequenceClassification,
        ElasticForSequenceClassification,
    ),
    (AutoModelForTokenClassification, MiniMoeForTokenClassification, ElasticForTokenClassification),
):
    _automatic.register(MiniMoeConfig, _moe_class, exist_ok=True)
    _automatic.register(ElasticConfig, _elastic_class, exist_ok=True)

"""Tells transformers' automatic classes about the students.

Nothing is imported at the top: this runs while transformers itself is being imported.
"""


def register_configurations() -> None:
    """Makes ``AutoConfig`` know the students' model types."""
    from transformers.models.auto.configuration_auto import AutoConfig

    from .configuration import MiniMoeConfig
    from .elastic_configuration import ElasticConfig

    AutoConfig.register(MiniMoeConfig.model_type, MiniMoeConfig, exist_ok=True)
    AutoConfig.register(ElasticConfig.model_type, ElasticConfig, exist_ok=True)


def register_models() -> None:
    """Makes transformers' automatic classes load students, with a task's head too."""
    from transformers.models.auto.modeling_auto import (
        AutoModel,
        AutoModelForSequenceClassification,
        AutoModelForTokenClassification,
    )

    from .configuration import MiniMoeConfig
    from .elastic import ElasticModel
    from .elastic_configuration import ElasticConfig
    from .moebert import MiniMoeModel
    from .task_heads import (
        ElasticForSequenceClassification,
        ElasticForTokenClassification,
        MiniMoeForSequenceClassification,
        MiniMoeForTokenClassification,
    )

    AutoModel.register(MiniMoeConfig, MiniMoeModel, exist_ok=True)
    AutoModel.register(ElasticConfig, ElasticModel, exist_ok=True)
    for_texts, for_tokens = AutoModelForSequenceClassification, AutoModelForTokenClassification
    for_texts.register(MiniMoeConfig, MiniMoeForSequenceClassification, exist_ok=True)
    for_texts.register(ElasticConfig, ElasticForSequenceClassification, exist_ok=True)
    for_tokens.register(MiniMoeConfig, MiniMoeForTokenClassification, exist_ok=True)
    for_tokens.register(ElasticConfig, ElasticForTokenClassification, exist_ok=True)

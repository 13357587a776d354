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
    """Makes ``AutoModel`` load the students' encoders."""
    from transformers.models.auto.modeling_auto import AutoModel

    from .configuration import MiniMoeConfig
    from .elastic import ElasticModel
    from .elastic_configuration import ElasticConfig
    from .moebert import MiniMoeModel

    AutoModel.register(MiniMoeConfig, MiniMoeModel, exist_ok=True)
    AutoModel.register(ElasticConfig, ElasticModel, exist_ok=True)

"""Tells transformers' automatic classes about the students.

Nothing is imported at the top: this runs while transformers itself is being imported.
"""


def register_configurations() -> None:
    """Makes ``AutoConfig`` know ``model_type: minimoe``."""
    from transformers.models.auto.configuration_auto import AutoConfig

    from .configuration import MiniMoeConfig

    AutoConfig.register(MiniMoeConfig.model_type, MiniMoeConfig, exist_ok=True)


def register_models() -> None:
    """Makes ``AutoModel`` load the student's encoder."""
    from transformers.models.auto.modeling_auto import AutoModel

    from .configuration import MiniMoeConfig
    from .moebert import MiniMoeModel

    AutoModel.register(MiniMoeConfig, MiniMoeModel, exist_ok=True)

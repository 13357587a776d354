"""What Megatron pickles beside weights and plain values, of which nothing is run."""

from pathlib import Path

from ..errors import UserError

SET_ASIDE = (
    "megatron.core.enums.ModelType",
    "megatron.core.optimizer.OptimizerConfig",
    "megatron.core.optimizer.optimizer_config.OptimizerConfig",
    "megatron.core.rerun_state_machine.RerunDiagnostic",
    "megatron.core.rerun_state_machine.RerunMode",
    "megatron.core.rerun_state_machine.RerunState",
    "megatron.core.transformer.enums.AttnBackend",
    "megatron.core.transformer.enums.AttnMaskType",
    "megatron.core.transformer.enums.AttnType",
    "megatron.core.transformer.enums.CudaGraphScope",
    "megatron.core.transformer.enums.LayerType",
    "megatron.enums.ModelType",
    "megatron.fp16.loss_scaler.DynamicLossScaler",
    "megatron.fp16.loss_scaler.LossScaler",
    "megatron.legacy.model.enums.AttnMaskType",
    "megatron.legacy.model.enums.AttnType",
    "megatron.legacy.model.enums.LayerType",
    "megatron.model.enums.AttnMaskType",
    "megatron.model.enums.AttnType",
    "megatron.model.enums.LayerType",
    "megatron.model.enums.ModelType",
    "megatron.model.enums.PositionEmbeddingType",
    "numpy._core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct",
    "numpy.core.multiarray.scalar",
    "numpy.dtype",
    "numpy.dtypes.UInt32DType",
    "numpy.ndarray",
    "pathlib.PosixPath",
    "signal.Signals",
    "types.SimpleNamespace",
)


def unsafe(path: Path, what: object) -> UserError:
    """Makes the error for a file that holds more than is let in.

    Args:
        path: of the file.
        what: was found in it.
    """
    return UserError(
        f"{path}: holds more than tensors and plain values ({what}), which could run any code and "
        "is not read; on a machine that may run it, load it in the program that wrote it and save "
        "only its 'model', 'checkpoint_version' and 'args'"
    )

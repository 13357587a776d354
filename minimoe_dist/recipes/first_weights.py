"""Makes the first weights of students that start from their teacher, once a run.

Rank 0 fits them and keeps them in the run's folder; all ranks, and every later start of the run,
read them there as any other student's.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..checkpoints.export import export_student
from ..checkpoints.state_map import has_state_map, save_state_map
from ..config import RunConfig, StudentConfig
from ..data.batches import MicroBatch
from ..data.loader import heldout_batches
from ..durable import write_json
from ..errors import UserError
from ..foreign import read_json
from ..model_paths import resolve_model_path
from ..models.inheritance import Inheritance, inherit
from ..models.pretrained import encoder_dtype, load_encoder, read_encoder_config
from ..models.teacher import FLOAT8, cut_config, layer_number
from ..runs.folder import RunFolder
from ..runtime import StopRequest, logger
from ..train.agreement import StopRequestedError, worked_out_by_rank_0
from ..train.out_of_memory import naming_batch
from .corpora import RunData
from .model_types import make_fresh_student

_log = logger("first_weights")
_FORMAT = 1
# Real tokens of the sample, and of each neuron of each expert, whose second maps are solved for.
_LEAST_TOKENS = 1 << 15
_TOKENS_PER_NEURON = 8


def with_first_weights(
    config: RunConfig, data: RunData, device: torch.device, stop: StopRequest
) -> RunConfig:
    """Returns a run whose students that start from the teacher have folders to start from.

    A collective; the teacher's pass and the fits are rank 0's.

    Args:
        config: the run.
        data: its corpora.
        device: of this rank.
        stop: asked for by a signal.

    Raises:
        UserError: the teacher cannot be loaded, or the folder not be written.
        StopRequestedError: a rank was asked to stop; the starts that are made stay.
    """
    if all(student.start != "teacher" for student in config.students):
        return config

    def make(go_on: Callable[[], None]) -> None:
        with naming_batch(
            "the teacher's states, which students' starts are fitted to",
            "give students start split; for the teacher's pass alone a lower "
            "training.per_device_eval_batch_size does",
        ):
            _make_all(config, data, device, go_on)

    try:
        worked_out_by_rank_0(make, stop, device)
    except StopRequestedError:
        _log.info("stopped: the next start fits what is missing from the beginning")
        raise
    students = [
        student.model_copy(
            update={"start": "split", "initial_weights": str(_folder(config, student))}
        )
        if student.start == "teacher"
        else student
        for student in config.students
    ]
    return config.model_copy(update={"students": students})


def _record(folder: Path) -> Path:
    """The file that tells what a start was made of; it is written last."""
    return folder.with_name(f"{folder.name}.json")


def _folder(config: RunConfig, student: StudentConfig) -> Path:
    return RunFolder(Path(config.output_dir)).first_weights / student.name


def _make_all(
    config: RunConfig, data: RunData, device: torch.device, go_on: Callable[[], None]
) -> None:
    missing = {
        student.name: facts
        for student in config.students
        if student.start == "teacher"
        and not _is_there(_folder(config, student), facts := _facts(config, data, student))
    }
    if not missing:
        return
    go_on()
    # A teacher that is shared out need not fit one rank's device.
    device = device if config.teacher.layout == "replicated" else torch.device("cpu")
    path = config.teacher.model_name_or_path
    resolved = resolve_model_path(path)
    whole = read_encoder_config(path, resolved)
    layer = layer_number(whole, config.teacher.relation_layer)
    dtype = torch.bfloat16 if config.teacher.dtype == FLOAT8 else config.teacher.dtype
    teacher = load_encoder(path, resolved, cut_config(whole, layer), encoder_dtype(dtype, device))
    teacher.to(device)
    for student in config.students:
        if student.name not in missing:
            continue
        go_on()
        sample = _sample(config, data, student, device)
        _log.info(
            "%s: its start is fitted to the teacher's states, of %s tokens",
            student.name,
            f"{sum(int(batch.attention_mask.sum()) for batch in sample):,}",
        )
        fresh = make_fresh_student(config, student, whole).to(device)
        try:
            found = inherit(fresh, teacher, sample, layer, config.seed, go_on)
        except UserError as error:
            raise UserError(
                f"students.{student.name}.start: teacher {path} gives no weights: {error}; look at "
                "its weights, or start split"
            ) from error
        folder = _folder(config, student)
        _record(folder).unlink(missing_ok=True)
        export_student(fresh.config, fresh.cpu().state_dict(), folder, data.tokenizer)
        save_state_map(fresh.state_dict(), folder)
        write_json(_record(folder), {"made_of": missing[student.name], "found": _told(found)})
        _log.info("%s: %s", student.name, _words(found))
    if device.type == "cuda":
        del teacher
        torch.cuda.empty_cache()


def _sample(
    config: RunConfig, data: RunData, student: StudentConfig, device: torch.device
) -> list[MicroBatch]:
    """Returns the first pairs of the corpora, of enough tokens for the largest fit."""
    neurons = 4 * student.hidden * student.feedforward_experts
    wanted, batches, found = max(_LEAST_TOKENS, _TOKENS_PER_NEURON * neurons), [], 0
    for micro in heldout_batches(
        data.pairs,
        data.collate,
        count=wanted,
        batch_size=config.training.per_device_eval_batch_size,
        rank=0,
        world_size=1,
    ):
        batches.append(micro.on_each(lambda tensor: tensor.to(device)))
        found += micro.num_tokens
        if found >= wanted:
            break
    return batches


def _facts(config: RunConfig, data: RunData, student: StudentConfig) -> dict[str, Any]:
    """What a start is made of: where any of it differs, it is made again."""
    return {
        "format": _FORMAT,
        **{name: value for name, value in data.contents().items() if name != "heldout_corpora"},
        "reading": config.teacher.model_dump(
            mode="json", include={"relation_layer", "dtype", "do_lower_case", "use_slow_tokenizer"}
        ),
        "data": config.data.model_dump(
            mode="json",
            include={"data_type", "max_length", "short_sequence_probability", "whole_word_mask"},
        ),
        "compat": config.compat,
        "student": student.model_dump(mode="json", exclude={"dropout"}),  # no part of a start
        "num_relation_heads": config.objective.num_relation_heads,
        # They decide where relations are read; older starts do not say that they are not learnt.
        **({"last_states": True} if config.learns_last_states else {}),
        "seed": config.seed,
    }


def _is_there(folder: Path, facts: dict[str, Any]) -> bool:
    if not (folder / "config.json").is_file() or not _record(folder).is_file():
        return False
    if "last_states" in facts and not has_state_map(folder):
        return False
    try:
        return bool(read_json(_record(folder))["made_of"] == facts)
    except (UserError, OSError, ValueError, KeyError, TypeError):  # it is made again
        return False


def _told(found: Inheritance) -> dict[str, Any]:
    return {
        "tokens": found.tokens,
        "kept": found.kept,
        "layers": [vars(layer) for layer in found.layers],
    }


def _words(found: Inheritance) -> str:
    layers = ", ".join(f"{layer.explained:.0%} behind layer {layer.last}" for layer in found.layers)
    return (
        f"its width holds {found.kept:.0%} of the variance of the teacher's states, and its layers "
        f"explain {layers} of that"
    )

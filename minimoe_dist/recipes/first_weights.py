"""Makes first weights that need a look at text, once a run: from the teacher, or as clusters.

Rank 0 fits them and keeps them in the run's folder; all ranks, and every later start of the run,
read them there as any other student's.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from ..checkpoints.export import export_student
from ..checkpoints.state_map import has_state_map, save_state_map, state_map_contents
from ..config import RunConfig, StudentConfig
from ..data.batches import MicroBatch
from ..data.loader import heldout_batches
from ..durable import write_json
from ..errors import UserError
from ..foreign import read_json
from ..model_description import require_model
from ..model_paths import resolve_model_path
from ..models import clusters, inheritance
from ..models.moebert import MiniMoeForRelations
from ..models.pretrained import encoder_dtype, load_encoder
from ..models.teacher import FLOAT8, cut_config, layer_number
from ..runs.folder import RunFolder
from ..runtime import StopRequest, logger
from ..train.agreement import StopRequestedError, worked_out_by_rank_0
from ..train.out_of_memory import naming_batch
from ..train.progress import Progress, TimedProgress
from .corpora import RunData
from .model_types import make_fresh_student, teacher_config

_log = logger("first_weights")
_FORMAT = 1
_MADE = ("teacher", "clusters")  # of the starts, those that are made here
# Real tokens of the sample that a start is fitted to, in all and for each neuron of each expert,
# whose second maps are solved for: of a quarter of them much of a fit holds for these tokens alone.
# They are what `students.start_tokens` says of its default.
_LEAST_TOKENS_OF_FITS = 1 << 17
_TOKENS_PER_NEURON = 16
# Of the sample that clusters are of, in all and for each.
_LEAST_TOKENS_OF_CLUSTERS = 1 << 15
_TOKENS_PER_CLUSTER = 512


def with_first_weights(
    config: RunConfig, data: RunData, device: torch.device, stop: StopRequest
) -> RunConfig:
    """Returns a run whose students with such starts have folders to start from.

    A collective; passes over text and fits are rank 0's.

    Args:
        config: the run.
        data: its corpora.
        device: of this rank.
        stop: asked for by a signal.

    Raises:
        UserError: a model cannot be loaded, nothing be learnt from its states, or the folder not
            be written.
        StopRequestedError: a rank was asked to stop; the starts that are made stay.
    """
    if not any(student.start in _MADE for student in config.students):
        return config

    def make(go_on: Callable[[], None]) -> None:
        with naming_batch(
            "the states that students' starts are fitted to",
            "lower students.start_tokens or give students another start; for passes over text "
            "alone a lower training.per_device_eval_batch_size does",
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
        if student.start in _MADE
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
        if student.start in _MADE
        and not _is_there(_folder(config, student), facts := _facts(config, data, student))
    }
    if not missing:
        return
    go_on()
    starts = _Starts(config, device, go_on)
    make = {"teacher": starts.from_teacher, "clusters": starts.as_clusters}
    for student in config.students:
        if student.name not in missing:
            continue
        go_on()
        made = make[student.start](student, data)
        folder, weights = _folder(config, student), made.student.cpu().state_dict()
        _record(folder).unlink(missing_ok=True)
        export_student(made.student.config, weights, folder, data.tokenizer)
        save_state_map(weights, folder)
        write_json(_record(folder), {"made_of": missing[student.name], "found": made.found})
        _log.info("%s: %s", student.name, made.words)
    if device.type == "cuda":
        del starts, make
        torch.cuda.empty_cache()


@dataclass(frozen=True)
class _Made:
    """A student with its first weights.

    Attributes:
        student: it.
        found: what came of it, as JSON.
        words: the same in words.
    """

    student: MiniMoeForRelations
    found: dict[str, Any]
    words: str


class _Starts:
    """Makes the starts of a run's students; the teacher is loaded where one needs it."""

    def __init__(self, config: RunConfig, device: torch.device, go_on: Callable[[], None]) -> None:
        self._config = config
        self._device = device
        self._go_on = go_on

    @cached_property
    def _teacher_config(self) -> PreTrainedConfig:
        """Of the whole teacher."""
        return teacher_config(self._config.teacher.model_name_or_path)

    @cached_property
    def _teacher(self) -> PreTrainedModel:
        """Its layers up to the one whose relations are learnt, on the device of the fits."""
        options, device = self._config.teacher, self._fits_on
        layer = layer_number(self._teacher_config, options.relation_layer)
        dtype = torch.bfloat16 if options.dtype == FLOAT8 else options.dtype
        path = options.model_name_or_path
        teacher = load_encoder(
            path,
            resolve_model_path(path),
            cut_config(self._teacher_config, layer),
            encoder_dtype(dtype, device),
        )
        return teacher.to(device)

    @property
    def _fits_on(self) -> torch.device:
        """A teacher that is shared out need not fit one rank's device."""
        is_whole = self._config.teacher.layout == "replicated"
        return self._device if is_whole else torch.device("cpu")

    def from_teacher(self, student: StudentConfig, data: RunData) -> _Made:
        """A student whose weights are made of the teacher's."""
        path, device = self._config.teacher.model_name_or_path, self._fits_on
        neurons = student.neurons_of_an_expert * student.feedforward_experts
        usual = max(_LEAST_TOKENS_OF_FITS, _TOKENS_PER_NEURON * neurons)
        teacher, sample = self._teacher, self._sample(data, student.start_tokens or usual, device)
        _log.info(
            "%s: its start is fitted to the teacher's states, of %s tokens",
            student.name,
            _count(sample),
        )
        fresh = make_fresh_student(self._config, student, self._teacher_config).to(device)
        layer = layer_number(self._teacher_config, self._config.teacher.relation_layer)
        reads = inheritance.batches_read(fresh, len(sample))
        try:
            with self._shown(student, reads) as go_on:
                found = inheritance.inherit(fresh, teacher, sample, layer, self._config.seed, go_on)
        except UserError as error:
            raise UserError(
                f"students.{student.name}.start: teacher {path} gives no weights: {error}; look at "
                "its weights, or start split"
            ) from error
        return _Made(fresh, _told(found), _words(found))

    def as_clusters(self, student: StudentConfig, data: RunData) -> _Made:
        """A student of copies of a plain one, whose routers send clusters of tokens to them."""
        device = self._device
        copies = make_fresh_student(self._config, student, self._teacher_config).to(device)
        experts = max(student.attention_experts, student.feedforward_experts)
        wanted = max(_LEAST_TOKENS_OF_CLUSTERS, _TOKENS_PER_CLUSTER * experts)
        sample = self._sample(data, wanted, device)
        if self._config.training.router_rate_factor:
            _log.warning(
                "%s: its routers move, and tokens to experts that have learnt from others; "
                "give training.router_rate_factor 0",
                student.name,
            )
        _log.info(
            "%s: its routers are fitted to clusters of %s tokens", student.name, _count(sample)
        )
        reads = clusters.batches_read(copies, len(sample))
        try:
            with self._shown(student, reads) as go_on:
                found = clusters.send_clusters(copies, sample, self._config.seed, go_on)
        except UserError as error:
            raise UserError(
                f"students.{student.name}.start: copies of {student.initial_weights} have no "
                f"clusters: {error}; look at its weights"
            ) from error
        shares = ", ".join(f"{one.probability:.0%} in {one.block} {one.layer}" for one in found)
        words = f"a chosen expert has on the mean a probability of {shares}"
        return _Made(copies, {"blocks": [vars(one) for one in found]}, words)

    @contextmanager
    def _shown(self, student: StudentConfig, reads: int) -> Iterator[Callable[[], None]]:
        """Shows how many of so many batches are read; yields what is to be called before each."""
        begun = 0
        progress = Progress(sys.stderr, reads, 0, "fitting the", label=f"start of {student.name}")
        with TimedProgress(progress) as shown:

            def go_on() -> None:
                nonlocal begun
                self._go_on()
                if begun:
                    shown.advance({})
                    shown.tell(begun, is_last=False)
                begun += 1

            yield go_on
            shown.advance({})
            shown.tell(reads, is_last=True)

    def _sample(self, data: RunData, wanted: int, device: torch.device) -> list[MicroBatch]:
        """Returns the first pairs of the corpora, of ``wanted`` real tokens or some more."""
        batches, found = [], 0
        for micro in heldout_batches(
            data.pairs,
            data.collate,
            count=wanted,
            batch_size=self._config.training.per_device_eval_batch_size,
            rank=0,
            world_size=1,
        ):
            batches.append(micro.on_each(lambda tensor: tensor.to(device)))
            found += micro.num_tokens
            if found >= wanted:
                break
        return batches


def _count(sample: Sequence[MicroBatch]) -> str:
    return f"{sum(int(batch.attention_mask.sum()) for batch in sample):,}"


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
        "student": _start_options(student),
        "num_relation_heads": config.objective.num_relation_heads,
        **_plain_contents(student),
        # They decide where relations are read; older starts do not say that they are not learnt.
        **({"last_states": True} if config.learns_last_states else {}),
        "seed": config.seed,
    }


def _start_options(student: StudentConfig) -> dict[str, Any]:
    # Dropout is no part of a start, and older starts do not say that later options are not given.
    absent = {name for name in ("neurons", "start_tokens") if getattr(student, name) is None}
    return student.model_dump(mode="json", exclude={"dropout", *absent})


def _plain_contents(student: StudentConfig) -> dict[str, str | None]:
    """Of the plain student that a start is copies of, which may have been trained again."""
    path = student.initial_weights
    if path is None:
        return {}
    plain = require_model(path, f"students.{student.name}.initial_weights", weights=True)
    return {
        "plain_contents": plain.contents(),
        "plain_state_map": state_map_contents(plain.folder),
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


def _told(found: inheritance.Inheritance) -> dict[str, Any]:
    return {
        "tokens": found.tokens,
        "kept": found.kept,
        "layers": [vars(layer) for layer in found.layers],
    }


def _words(found: inheritance.Inheritance) -> str:
    layers = ", ".join(f"{layer.explained:.0%} behind layer {layer.last}" for layer in found.layers)
    return (
        f"its width holds {found.kept:.0%} of the variance of the teacher's states, and its layers "
        f"explain {layers} of that"
    )

"""Opens the cache of a run's teacher: which signals it holds, of which pairs, and where."""

import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..config import RunConfig
from ..corpus.tokenizing import required_token_ids
from ..data.batches import MicroBatch
from ..data.cached_signals import SignalCache
from ..data.pairs import RepeatedPairs
from ..data.placing import Placer
from ..data.signal_bytes import RELATIONS, bytes_per_token
from ..data.signal_rows import SignalRows
from ..durable import hash_json, sampled_hash
from ..models.pretrained import encoder_dtype
from ..models.teacher import FLOAT8, RelationTeacher
from ..runs.summaries import CacheSummary
from ..runtime import Launch, StopRequest, logger
from ..train.agreement import decided_by_rank_0
from ..train.caching import CacheFiller
from ..train.objectives import RelationObjective
from .corpora import RunData
from .model_types import Lesson

_log = logger("relation_cache")
_FORMAT = 1
_BLOCK_BYTES = 64 << 20  # filled by one rank between two looks at a stop
_FEWEST_BLOCKS = 64  # which ranks take in turn
_NAME_DIGITS = 16


class RelationCache:
    """A run's cache.

    Args:
        config: the run, which names a type of cache.
        data: its corpora.
        lesson: with the teacher.
        launch: the processes; making it is a collective.
        device: of this rank.
    """

    def __init__(
        self, config: RunConfig, data: RunData, lesson: Lesson, launch: Launch, device: torch.device
    ) -> None:
        assert isinstance(data.pairs, RepeatedPairs)
        assert isinstance(lesson.objective, RelationObjective)
        assert isinstance(lesson.model, RelationTeacher)
        self._config, self._launch, self._device = config, launch, device
        self._pairs, self._collate = data.pairs, data.collate
        self._objective = lesson.objective
        teacher = lesson.model
        # What a processor multiplies is part of it, and ranks may have different ones.
        facts = decided_by_rank_0(lambda: _facts(config, data, teacher, device))
        name = hash_json(facts)
        pairs = self._pairs.num_distinct
        self._cache = SignalCache(
            Path(config.relation_cache_dir) / name[:_NAME_DIGITS],
            facts,
            pairs,
            _block_pairs(config, facts, pairs),
        )

    def fill(self, place: Placer, stop: StopRequest, reads: int) -> bool:
        """Computes what is missing; a collective.

        Args:
            place: brings batches to the teacher.
            stop: asked for by a signal.
            reads: pairs that the run reads, each time counted.

        Returns:
            False where it was stopped; the next start goes on there.

        Raises:
            UserError: the disk has not enough room, or the cache is damaged.
        """
        if reads < self._pairs.num_distinct:
            _log.warning(
                "the run reads %d pairs, and its cache is of %d: it is filled for other runs too; "
                "without teacher.cache this one would be done sooner",
                reads, self._pairs.num_distinct,
            )  # fmt: skip
        output_dir = str(Path(self._config.output_dir).absolute())
        run = hash_json({"host": socket.gethostname(), "run": output_dir})
        filler = CacheFiller(
            cache=self._cache,
            pairs=self._pairs,
            collate=self._collate,
            objective=self._objective,
            place=place,
            device=self._device,
            batch_size=self._config.training.per_device_train_batch_size,
            teacher=self._config.teacher.model_name_or_path,
            refuses_broken=self._config.training.health.broken_teacher == "stop",
            stream=sys.stderr if self._launch.rank == 0 else None,
            # The same at every start, so that what a killed one left is found and removed.
            writer=run[:_NAME_DIGITS],
            begin=int(run, 16),
        )
        return filler.fill(stop)

    def summary(self) -> CacheSummary:
        """Describes the filled cache."""
        return CacheSummary(
            folder=str(self._cache.folder),
            dtype=self._cache.dtype,
            bytes=self._cache.num_bytes,
            divergence=self._cache.divergence,
        )

    def recall(self, epochs: np.ndarray, numbers: np.ndarray, micro: MicroBatch) -> SignalRows:
        """Reads a batch's signals; a :class:`..data.loader.Recall`."""
        return self._cache.recall(self._pairs.distinct(epochs, numbers), micro)


def _facts(
    config: RunConfig, data: RunData, teacher: RelationTeacher, device: torch.device
) -> Mapping[str, Any]:
    """Returns what the signals of a run's pairs are a function of, as JSON."""
    dtype = config.teacher.dtype
    name = config.teacher.tokenizer_name_or_path or config.teacher.model_name_or_path
    by = config.teacher.implementation
    return {
        "format": _FORMAT,
        "dtype": config.teacher.cache,
        "hidden_size": teacher.hidden_size,
        **({"signals": RELATIONS + 1} if teacher.gives_states else {}),  # nor do they say three
        # A teacher that differs in a bias alone has other signals.
        "teacher": data.teacher.whole_contents(),
        "teacher_dtype": dtype if dtype == FLOAT8 else str(encoder_dtype(dtype, device)),
        **({} if by == "transformers" else {"implementation": by}),  # older caches do not say it
        "relation_layer": teacher.relation_layer,
        "corpora": [
            [*(sampled_hash(Path(corpus.prefix + end)) for end in (".bin", ".idx")), repr(weight)]
            for corpus, weight in data.train_corpora
        ],
        "special_tokens": required_token_ids(data.tokenizer, name),
        "epochs": config.teacher.cache_epochs,
        "seed": config.seed,
        "data_type": config.data.data_type,
        "max_length": config.data.max_length,
        "short_sequence_probability": config.data.short_sequence_probability,
    }


def _block_pairs(config: RunConfig, facts: Mapping[str, Any], pairs: int) -> int:
    """Returns the pairs of a block: of no more bytes than said, and blocks for many ranks."""
    signals = facts.get("signals", RELATIONS)
    of_token = bytes_per_token(facts["hidden_size"], config.teacher.cache, signals)
    most = _BLOCK_BYTES // (of_token * config.data.max_length)
    return max(1, min(most, -(-pairs // _FEWEST_BLOCKS)))

"""Fills a cache of a teacher's relation signals: one pass over the pairs, by all ranks."""

import shutil
import socket
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TextIO

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from ..data.batches import Collate, MicroBatch, padding_batch
from ..data.cached_signals import SignalCache
from ..data.pairs import RepeatedPairs
from ..data.placing import Placer
from ..data.signal_rows import SignalRows
from ..errors import UserError
from ..objectives.relations import relation_loss_sum
from ..runtime import StopRequest, logger
from .agreement import decided_by_rank_0, on_any_rank
from .health import teacher_records
from .objectives import RELATIONS, RelationObjective
from .progress import Progress, TimedProgress
from .teacher_signals import find_faults

_log = logger("train.caching")
_LOOK_SECONDS = 1.0  # between looks at what other runs have written
_SEEN_SECONDS = 30.0  # in which a folder that one machine made shows on all
_PAIR_BYTES = 3 * 8  # its length and both checksums
_FILE_BYTES = 1 << 13  # a block's head, and the rest of its last page
_DRAWN = 1 << 14  # pairs at a time, where only their lengths are asked for


@dataclass(frozen=True)
class CacheFiller:
    """Fills a cache.

    Attributes:
        cache: to be filled.
        pairs: of the run.
        collate: makes batches of them.
        objective: with the teacher.
        place: brings batches to where the teacher is.
        device: of this rank.
        batch_size: pairs of a pass.
        teacher: its path, for messages.
        refuses_broken: whether a teacher from which nothing can be learnt ends it.
        stream: where progress goes; None: nowhere.
        writer: the run's name among those that may fill the cache too.
        begin: any number; what block it begins at.
    """

    cache: SignalCache
    pairs: RepeatedPairs
    collate: Collate
    objective: RelationObjective
    place: Placer
    device: torch.device
    batch_size: int
    teacher: str
    refuses_broken: bool
    stream: TextIO | None
    writer: str
    begin: int

    def fill(self, stop: StopRequest) -> bool:
        """Computes and writes the blocks that are missing, then opens the cache; a collective.

        Ranks take blocks in turn. Each makes the same number of passes, since those of a teacher
        that is shared out are collectives. Runs that fill one cache at a time share the work, more
        or less: each begins somewhere else, and leaves out what is there by then.

        Returns:
            False where a rank was asked to stop: what is written stays.

        Raises:
            UserError: the disk has not enough room, nothing can be learnt from the teacher, or the
                cache is damaged.
            OSError: a block cannot be written.
        """
        cache = self.cache
        blocks = decided_by_rank_0(self._prepare)
        self._check_seen_by_all()
        if not self._compute(blocks, stop) or not self._check(stop):
            return False
        _log.info(
            "relation cache %s: %d pairs in %s, %.3g GB; relations are off by a KL of %.2g a row",
            cache.folder, cache.num_pairs, cache.dtype, cache.num_bytes / 1e9, cache.divergence,
        )  # fmt: skip
        return True

    def _compute(self, blocks: Sequence[int], stop: StopRequest) -> bool:
        """Writes the blocks that are missing; False where a rank was asked to stop."""
        cache, rank, ranks = self.cache, dist.get_rank(), dist.get_world_size()
        passes = -(-len(cache.pairs_of(0)) // self.batch_size)
        rounds, number = -(-len(blocks) // ranks), 0
        looked = time.monotonic()
        with self._progress(rounds * passes, "filling the") as progress:
            while blocks:
                block = blocks[rank] if rank < len(blocks) else None
                self._fill_block(block, passes, progress.advance, looks=number == 0)
                blocks = blocks[ranks:]  # these are written, or an error ends all ranks
                is_time = time.monotonic() - looked > _LOOK_SECONDS
                if decided_by_rank_0(partial(bool, is_time)):
                    there = set(blocks) - set(decided_by_rank_0(cache.missing))
                    blocks = [one for one in blocks if one not in there]
                    looked = time.monotonic()
                number = rounds - -(-len(blocks) // ranks)
                progress.tell(number * passes, is_last=not blocks)
                if on_any_rank(stop.requested, self.device):
                    _log.info(
                        "stopped: %d of %d blocks of the relation cache are in %s; the next start "
                        "goes on there",
                        cache.num_blocks - len(blocks), cache.num_blocks, cache.folder,
                    )  # fmt: skip
                    return False
        return True

    def _check(self, stop: StopRequest) -> bool:
        """Opens the cache and reads all of it, each rank a share; all raise what one finds.

        Returns:
            False where a rank was asked to stop.
        """
        cache, rank, ranks = self.cache, dist.get_rank(), dist.get_world_size()
        problem = _problem_of(cache.open)
        rounds = -(-cache.num_blocks // ranks)
        with self._progress(rounds, "checking the") as progress:
            for number in range(rounds):
                block = number * ranks + rank
                if problem is None and block < cache.num_blocks:
                    problem = _problem_of(partial(cache.verify, [block]))
                progress.advance({})
                progress.tell(number + 1, is_last=False)
                if on_any_rank(stop.requested, self.device):
                    _log.info("stopped while the relation cache was checked")
                    return False
        self._raise_anyones(problem)
        return True

    def _check_seen_by_all(self) -> None:
        """Refuses a folder that only some machines see, before anything is written into it."""
        deadline = time.monotonic() + _SEEN_SECONDS
        while not (is_seen := self.cache.is_there) and time.monotonic() < deadline:
            time.sleep(0.1)  # a network's file system may take its time
        problem = None
        if not is_seen:
            problem = UserError(
                f"teacher.cache_dir: {self.cache.folder} is not there on {socket.gethostname()}: "
                "give a folder that all machines see"
            )
        self._raise_anyones(problem)

    def _raise_anyones(self, problem: UserError | None) -> None:
        problems: list[UserError | None] = [None] * dist.get_world_size()
        dist.all_gather_object(problems, problem)
        for found in problems:
            if found is not None:
                raise found

    def _progress(self, total: int, activity: str) -> TimedProgress:
        return TimedProgress(Progress(self.stream, total, 0, activity, label="relation cache"))

    def _missing(self) -> list[int]:
        """Returns the blocks to fill, from this run's place on."""
        missing = self.cache.missing()
        begin = bisect_left(missing, self.begin % self.cache.num_blocks)
        return missing[begin:] + missing[:begin]

    def _prepare(self) -> list[int]:
        """Makes the folder, and returns the blocks to fill, for which there is room."""
        cache = self.cache
        cache.make_folder(self._writer)
        missing = self._missing()
        if not missing:
            return missing
        tokens = sum(self._tokens(cache.pairs_of(block)) for block in missing)
        pairs = sum(len(cache.pairs_of(block)) for block in missing)
        needed = tokens * cache.bytes_per_token + pairs * _PAIR_BYTES + len(missing) * _FILE_BYTES
        free = shutil.disk_usage(cache.folder).free
        if needed > free:
            raise UserError(
                f"teacher.cache_dir: {cache.folder} has {free / 1e9:.3g} GB free, and the signals "
                f"of {tokens:,} tokens take {needed / 1e9:.3g} GB in {cache.dtype}: give another "
                "folder, fewer cache_epochs, or cache int8"
            )
        _log.info(
            "filling the relation cache %s: signals of %d tokens, %.3g GB",
            cache.folder, tokens, needed / 1e9,
        )  # fmt: skip
        return missing

    @property
    def _writer(self) -> str:
        return f"{self.writer}_{dist.get_rank()}"

    def _tokens(self, numbers: range) -> int:
        parts = (numbers[start : start + _DRAWN] for start in range(0, len(numbers), _DRAWN))
        return sum(int(self.pairs.draw_distinct(np.array(part)).lengths.sum()) for part in parts)

    def _fill_block(
        self,
        block: int | None,
        passes: int,
        advance: Callable[[dict[str, float]], None],
        *,
        looks: bool,
    ) -> None:
        parts: list[tuple[MicroBatch, SignalRows]] = []
        divergence, batches = 0.0, self._batches(block)
        for number in range(passes):
            micro = next(batches, None)
            signals = self._teach(micro or padding_batch())
            if looks and number == 0:
                self._look_at(signals)
            if micro is not None:
                rows = SignalRows.encode(list(signals.values()), self.cache.dtype)
                if not parts:
                    divergence = self._divergence(rows, signals, micro.attention_mask)
                parts.append((micro, rows.on_each(Tensor.cpu)))
            advance({})
        if block is not None:
            self.cache.write(block, parts, divergence, self._writer)

    def _batches(self, block: int | None) -> Iterator[MicroBatch]:
        numbers = self.cache.pairs_of(block) if block is not None else range(0)
        for start in range(0, len(numbers), self.batch_size):
            part = np.array(numbers[start : start + self.batch_size])
            yield self.collate(self.pairs.draw_distinct(part), part)

    def _teach(self, micro: MicroBatch) -> Mapping[str, Tensor]:
        """Returns the teacher's signals, each [tokens, H], on the device."""
        batch = self.place(micro).arrived()
        return self.objective.signals(self.objective.teach(batch), batch)

    def _look_at(self, signals: Mapping[str, Tensor]) -> None:
        """Refuses, before an hour of filling, a teacher from which nothing can be learnt."""
        faults = find_faults([signals], self.device)
        for record in teacher_records(0, self.teacher, faults):
            if self.refuses_broken and record.value in (0.0, 1.0):
                raise UserError(
                    f"{record.describe()}: look at the weights of teacher.model_name_or_path, or "
                    "give another"
                )

    def _divergence(
        self, rows: SignalRows, signals: Mapping[str, Tensor], attention_mask: Tensor
    ) -> float:
        """Returns the mean KL a row of the relations of what is kept, against the teacher's."""
        mask = attention_mask.to(self.device)
        exact = SignalRows.encode(list(signals.values()), "float32")
        heads = self.objective.num_relation_heads
        (query, key, value, *_), (queries, keys, values, *_) = (
            each.padded(mask).decode() for each in (rows, exact)
        )
        total, _ = relation_loss_sum((query, key, value), (queries, keys, values), mask, heads)
        return float(total) / (len(RELATIONS) * heads * int(mask.sum()))


def _problem_of(check: Callable[[], None]) -> UserError | None:
    try:
        check()
    except UserError as error:
        return error
    return None

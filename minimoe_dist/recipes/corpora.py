"""Opens a run's corpora, holds them against the teacher's vocabulary, makes pairs and batches."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..config import CorpusPath, RunConfig
from ..corpus.tokenizing import (
    check_casing,
    check_fingerprint,
    embedding_rows,
    load_tokenizer,
    required_token_ids,
    vocabulary_fingerprint,
)
from ..data.batches import Collate, MicroBatch, SpecialTokens, build_collate
from ..data.indexed import IndexedCorpus, find_corpora
from ..data.loader import PairLoader, Recall, heldout_batches
from ..data.pairs import BlendedPairs, Pairs, PairSource, RepeatedPairs
from ..data.placing import Placer
from ..durable import sampled_hash
from ..errors import UserError
from ..model_description import ModelDescription, require_model
from ..preflight.models import check_embedded
from ..runtime import Launch, logger

_log = logger("corpora")
_SAMPLED_TOKENS = 1 << 16
_UNSPACED_SHARE = 0.2


@dataclass(frozen=True)
class RunData:
    """The text that a run reads, and what makes batches of it.

    Attributes:
        tokenizer: the teacher's, exported with students.
        pairs: of the training corpora.
        heldout: of the held-out corpora; None where the run names none.
        collate: makes micro-batches.
        train_corpora, heldout_corpora: with their weights, by position in the recipe.
        teacher: whose tokenizer it is.
    """

    tokenizer: Any
    pairs: Pairs
    heldout: Pairs | None
    collate: Collate
    train_corpora: Sequence[tuple[IndexedCorpus, float]]
    heldout_corpora: Sequence[tuple[IndexedCorpus, float]]
    teacher: ModelDescription

    def contents(self) -> dict[str, Any]:
        """Samples what a resume holds the run against: its corpora and its teacher, as JSON."""
        return {
            "corpora": [_contents(*corpus) for corpus in self.train_corpora],
            "heldout_corpora": [_contents(*corpus) for corpus in self.heldout_corpora],
            "teacher_contents": self.teacher.contents(),
        }

    def loader(
        self,
        config: RunConfig,
        launch: Launch,
        consumed_samples: int,
        place: Placer | None = None,
        recall: Recall | None = None,
    ) -> PairLoader:
        """Makes the loader of this rank's steps, from a number of consumed samples on."""
        return PairLoader(
            self.pairs,
            self.collate,
            micro_batch_size=config.training.per_device_train_batch_size,
            accumulation_steps=config.training.num_grad_accum_steps,
            rank=launch.rank,
            world_size=launch.world_size,
            seed=config.seed,
            consumed_samples=consumed_samples,
            prefetch_steps=config.data.prefetch_steps,
            place=place,
            recall=recall,
        )

    def heldout_batches(self, config: RunConfig, launch: Launch) -> Iterator[MicroBatch]:
        """Yields this rank's share of the held-out pairs."""
        assert self.heldout is not None
        return heldout_batches(
            self.heldout,
            self.collate,
            count=config.training.eval_sequences,
            batch_size=config.training.per_device_eval_batch_size,
            rank=launch.rank,
            world_size=launch.world_size,
        )


def open_data(config: RunConfig) -> RunData:
    """Opens everything that ``config.data`` names.

    Raises:
        UserError: a corpus is damaged, or was tokenised with another vocabulary.
    """
    teacher, data = config.teacher, config.data
    name = teacher.tokenizer_name_or_path or teacher.model_name_or_path
    tokenizer = load_tokenizer(name, teacher.do_lower_case, teacher.use_slow_tokenizer)
    special = _special_tokens(tokenizer, name)
    described = require_model(
        teacher.model_name_or_path, "teacher.model_name_or_path", weights=False, teaches=True
    )
    _check_rows(described, special.vocab_size, name)
    train = _open_corpora(data.record_path_or_regex)
    heldout = _open_corpora(data.heldout_path_or_regex or [])
    fingerprint = vocabulary_fingerprint(tokenizer)
    for corpus, _ in itertools.chain(train, heldout):
        _check_vocabulary(corpus, fingerprint, special.vocab_size, name)
        if corpus.manifest is not None:
            check_casing(corpus.prefix, corpus.manifest.tokenizer, tokenizer, name)
    whole_words = data.data_type.endswith("mlm") and data.whole_word_mask
    if whole_words:
        _check_word_marks([corpus for corpus, _ in itertools.chain(train, heldout)], tokenizer)
    pairs = _pairs(train, config, whole_words)
    return RunData(
        tokenizer=tokenizer,
        # What is kept of a pair is of use where the pair comes again.
        pairs=pairs if teacher.cache == "none" else RepeatedPairs(pairs, teacher.cache_epochs),
        heldout=_pairs(heldout, config, whole_words) if heldout else None,
        collate=build_collate(
            data.data_type,
            special,
            data.max_length,
            config.seed,
            _continuation_marks(tokenizer) if whole_words else None,
            full_length=config.compat == "seed",
        ),
        train_corpora=train,
        heldout_corpora=heldout,
        teacher=described,
    )


def _open_corpora(paths: Sequence[CorpusPath]) -> list[tuple[IndexedCorpus, float]]:
    return [
        (IndexedCorpus.open(prefix), path.weight)
        for path in paths
        for prefix in find_corpora(path.path)
    ]


def _pairs(
    corpora: Sequence[tuple[IndexedCorpus, float]], config: RunConfig, whole_words: bool
) -> Pairs:
    data = config.data
    sources = [
        PairSource(
            corpus,
            data.max_length,
            config.seed,
            data.short_sequence_probability,
            corpus.word_marks if whole_words else None,
        )
        for corpus, _ in corpora
    ]
    if len(sources) == 1:
        return sources[0]
    return BlendedPairs(sources, [weight for _, weight in corpora])


def _special_tokens(tokenizer: Any, name: str) -> SpecialTokens:
    ids = required_token_ids(tokenizer, name)
    return SpecialTokens(ids["cls"], ids["sep"], ids["pad"], ids["mask"], embedding_rows(tokenizer))


def _check_rows(teacher: ModelDescription, tokens: int, tokenizer_name: str) -> None:
    """Holds the teacher's word embeddings against its tokenizer, and says what padding is."""
    rows = teacher.vocab_size
    check_embedded("teacher.tokenizer_name_or_path", tokenizer_name, tokens, teacher)
    if rows == tokens:
        return
    _log.info(
        "teacher %s has %d rows of word embeddings for %d tokens: %d are padding, which no token "
        "uses; its students have them too",
        teacher.path,
        rows,
        tokens,
        rows - tokens,
    )


def _check_vocabulary(
    corpus: IndexedCorpus, fingerprint: str, vocab_size: int, tokenizer_name: str
) -> None:
    corpus.check_vocabulary(vocab_size)
    if corpus.manifest is None:
        _log.warning("%s: no manifest; trusted to be of the vocabulary of %s", corpus.prefix,
                     tokenizer_name)  # fmt: skip
    else:
        check_fingerprint(corpus.prefix, corpus.manifest.tokenizer, fingerprint, tokenizer_name)


def _check_word_marks(corpora: Sequence[IndexedCorpus], tokenizer: Any) -> None:
    """Refuses text without spaces that was built without marks: every character were a word."""
    unmarked = [corpus for corpus in corpora if not corpus.has_word_marks]
    if not unmarked:
        return
    ideographs = [
        index for token, index in tokenizer.get_vocab().items()
        if len(token) == 1 and "\u3400" <= token <= "\u9fff"
    ]  # fmt: skip
    for corpus in unmarked:
        end = corpus.sentence_of_token(min(_SAMPLED_TOKENS, corpus.num_tokens - 1)) + 1
        if np.isin(corpus.tokens(0, end), ideographs).mean() > _UNSPACED_SHARE:
            raise UserError(
                f"data.whole_word_mask: {corpus.prefix} is Chinese and does not know its words; "
                "build it with --whole_words, or mask single tokens"
            )


def _continuation_marks(tokenizer: Any) -> np.ndarray:
    """Returns which ids are pieces that continue a word: bool, one for each id."""
    marks = np.zeros(embedding_rows(tokenizer), dtype=bool)
    for token, index in tokenizer.get_vocab().items():
        marks[index] = token.startswith("##")
    return marks


def _contents(corpus: IndexedCorpus, weight: float) -> str:
    return f"{sampled_hash(Path(corpus.prefix + '.bin'))} × {weight:g}"

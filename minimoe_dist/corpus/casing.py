"""Finds whether a WordPiece tokenizer keeps case and accents where its folder does not say so.

transformers lower-cases and strips accents by default. A cased model's folder with no more than
``config.json`` and ``vocab.txt`` would then lose every capital that it has embeddings for. What its
vocabulary was made from tells: no text gives an entry with a capital once it is lower-cased.
"""

from __future__ import annotations

import os
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from .. import foreign
from ..runtime import logger
from .word_lists import MOST_TOKENIZER_BYTES, read_words

_log = logger("corpus")
_MADE_UP = re.compile(r"\[.*\]|<.*>")  # [UNK], [unused1], <eop>: no text is split into these
_FEW = 0.1  # of the entries with letters: as many may have been added by hand
_FEW_ACCENTS = 0.02
_FEW_LETTERS, _FEW_OF_ALPHABET = 3, 0.05  # German has three letters with accents among thirty


@dataclass(frozen=True)
class Casing:
    """Says what a WordPiece tokenizer does to letters before it splits them.

    Attributes:
        lower_case: lower-cases them.
        strip_accents: takes their accents off; None does as ``lower_case`` says.
        reason: what says so, for people.
    """

    lower_case: bool
    strip_accents: bool | None
    reason: str

    @property
    def in_words(self) -> str:
        """The casing for messages, as "keeps case and accents"."""
        strips = self.lower_case if self.strip_accents is None else self.strip_accents
        if self.lower_case:
            return "lower-cases and strips accents" if strips else "lower-cases and keeps accents"
        return "keeps case and strips accents" if strips else "keeps case and accents"


def undeclared_casing(folder: str, do_lower_case: bool | None = None) -> Casing | None:
    """Finds the casing that a folder's settings leave open, in tokenizer.json or by the vocabulary.

    Args:
        folder: of a model whose tokenizer is of BERT's class, which heeds neither.
        do_lower_case: takes the place of what was found of capitals, not of accents.

    Returns:
        None where ``tokenizer_config.json`` says it, and where there is no WordPiece vocabulary.
    """
    settings = read_json(folder, "tokenizer_config.json")
    if "do_lower_case" in settings:
        return None
    serialized = read_json(folder, "tokenizer.json")
    declared = _casing_of_normalizer(serialized)
    model = serialized.get("model") or {}
    vocab = model.get("vocab") if model.get("type") == "WordPiece" else read_words(folder)
    casing = declared or (casing_of_vocabulary(vocab) if isinstance(vocab, dict) else None)
    if casing is not None and "strip_accents" in settings:
        casing = replace(casing, strip_accents=settings["strip_accents"])
    if casing is not None and do_lower_case is not None:
        casing = replace(casing, lower_case=do_lower_case)
    return casing


def say_casing(name: str, casing: Casing) -> None:
    """Says what was decided of a tokenizer, why, and how to have it otherwise."""
    _log.info(
        "%s: the tokenizer %s (%s); --do_lower_case true|false says otherwise",
        name,
        casing.in_words,
        casing.reason,
    )


def casing_of_vocabulary(tokens: Iterable[str]) -> Casing:
    """Returns the casing that every entry of a WordPiece vocabulary can come from.

    Args:
        tokens: those that go on with a word have ``##`` before them.

    Returns:
        Case is kept where the vocabulary can spell capitals: it has half as many single capitals
        as single small letters, or more than a few entries with capitals. Others lower-case, and
        keep accents if they can spell these.
    """
    entries = {token.removeprefix("##") for token in tokens if not _MADE_UP.fullmatch(token)}
    with_letters = [entry for entry in entries if any(map(str.isalpha, entry))]
    with_case = [entry for entry in with_letters if entry.lower() != entry.upper()]
    with_capitals = [entry for entry in with_case if entry.lower() != entry]
    with_accents = [entry for entry in with_letters if _has_accents(entry)]
    letters = [entry for entry in with_case if len(entry) == 1]
    capitals = sum(entry.lower() != entry for entry in letters)
    accented = sum(map(_has_accents, letters))
    counts = f"of {len(with_letters):,} entries {len(with_capitals):,} have capitals"
    spells_capitals = 2 * capitals >= max(1, len(letters) - capitals)
    if spells_capitals or len(with_capitals) > _FEW * len(with_case):
        return Casing(False, None, counts)
    keeps_accents = len(with_accents) > _FEW_ACCENTS * len(with_letters) or (
        accented >= _FEW_LETTERS and accented > _FEW_OF_ALPHABET * len(letters)
    )
    counts += f" and {len(with_accents):,} accents"
    return Casing(True, False if keeps_accents else None, counts)


def _has_accents(entry: str) -> bool:
    """Tells whether BERT's stripping of accents, which splits Hangul syllables too, changes it."""
    decomposed = unicodedata.normalize("NFD", entry)
    return len(decomposed) > len(entry) or any(
        unicodedata.category(character) == "Mn" for character in decomposed
    )


def _casing_of_normalizer(serialized: Mapping[str, Any]) -> Casing | None:
    normalizer = serialized.get("normalizer") or {}
    if normalizer.get("type") != "BertNormalizer":
        return None
    return Casing(bool(normalizer["lowercase"]), normalizer["strip_accents"], "its tokenizer.json")


def read_json(folder: str, name: str) -> dict[str, Any]:
    """Reads an object's members; none where there is no such file or loading will refuse it."""
    try:
        values = foreign.read_json(os.path.join(folder, name), MOST_TOKENIZER_BYTES)
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}

"""Loads and fingerprints tokenizers, and builds encoders from sentences to ids.

WordPiece has a fast path through the package nanotoken, and tokenizers that are sentencepiece
underneath one past the code around it. Both are held against the tokenizer's own ids at each
start, and the tokenizer itself works where the two differ.
"""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np

from ..data.indexed_format import TokenizerRecord
from ..errors import UserError
from ..model_paths import TOKENIZERS, cached_file, hub_is_reachable, resolve_model_path
from ..runtime import logger
from .casing import say_casing, undeclared_casing
from .declared_tokens import check_ids
from .sentencepieces import SENTENCEPIECE_SUFFIX, load_sentencepiece
from .word_lists import read_words

if TYPE_CHECKING:
    import nanotoken
    from transformers import PreTrainedTokenizerBase

    from .known_tokenizers import KnownTokenizer

    CorpusTokenizer: TypeAlias = PreTrainedTokenizerBase | KnownTokenizer

_log = logger("corpus")
_ROLES = ("cls", "sep", "pad", "mask", "unk")
_BERTS_ROLES = ("cls", "sep", "pad", "mask")
_CASINGS = (
    ("keeps capitals", "lower-cases", "give --do_lower_case {0}"),
    (
        "keeps accents",
        "strips accents",
        'write "strip_accents": {0} into the tokenizer_config.json of {1}',
    ),
)
_BERT_OPTIONS = ("do_lower_case", "strip_accents")
_TRIAL = (
    "The quick brown fox, aged 3.14, jumps (twice!) over U.S. dogs; isn't it?",
    "naïve café İstanbul ΣΑΣ straße ﬁne Å Å e\u0301 \u1e9b\u0323",
    "他说：“你好！”然后走了……3个人 𠀀𪜀 한국어 日本語の文章 ไทย",
    "tabs\tand\u00a0spaces\u2003\u200b zero\u200dwidth \ufeff mark \x07 control \x0b\x0c",
    "[CLS] a [SEP] [MASK] [PAD] [UNK] [mask] <s> </s> ##ing",
    "emoji 👩‍👩‍👧 🇩🇪 ✨ $£€ ^`|~ — – … ‘quoted’ “words” http://a.b/c?d=e&f#g",
    "pneumonoultramicroscopicsilicovolcanoconiosis " + "x" * 150,
    "a text that is longer than any limit that a tokenizer's file may carry " * 60,
    "",
    " ",
)


class Encoder(Protocol):
    """Turns sentences into ids of a vocabulary, without special tokens around them."""

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        """Returns the ids of each text, integers [tokens]."""
        ...

    def encode_ragged(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Returns all ids, integers [tokens], and each text's number of them, int64 [texts]."""
        ...


class TokenizerEncoder:
    """The encoder that any tokenizer gives."""

    def __init__(self, tokenizer: CorpusTokenizer) -> None:
        self._tokenizer = tokenizer

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        """Returns the ids of each text, int32 [tokens]."""
        if not texts:
            return []
        encoded: Any = self._tokenizer(
            texts,
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        return [np.array(ids, np.int32) for ids in encoded["input_ids"]]

    def encode_ragged(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Returns all ids, int32 [tokens], and each text's number of them, int64 [texts]."""
        batch = self.encode_batch(texts)
        lengths = np.array([ids.size for ids in batch], np.int64)
        return np.concatenate([np.empty(0, np.int32), *batch]), lengths


class WordPieceEncoder:
    """The fast path for WordPiece vocabularies, on the calling thread only."""

    def __init__(self, tokenizer: nanotoken.Tokenizer) -> None:
        self._tokenizer = tokenizer

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        """Returns the ids of each text, uint32 [tokens]."""
        ids, lengths = self.encode_ragged(texts)
        return np.split(ids, np.cumsum(lengths)[:-1]) if texts else []

    def encode_ragged(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Returns all ids, uint32 [tokens], and each text's number of them, int64 [texts]."""
        ragged = self._tokenizer.encode_batch(texts, add_special_tokens=False, parallel=False)
        return ragged.ids, np.diff(ragged.offsets)


class SentencePieceEncoder(TokenizerEncoder):
    """The fast path for tokenizers that hand texts to sentencepiece one by one."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        super().__init__(tokenizer)
        self._model = tokenizer.sp_model
        # The model knows nothing of tokens that the tokenizer looks for in the text.
        names = sorted(tokenizer.added_tokens_encoder, key=len, reverse=True)
        self._added = re.compile("|".join(map(re.escape, names)) or r"(?!)")

    def encode_batch(self, texts: list[str]) -> list[np.ndarray]:
        """Returns the ids of each text, int32 [tokens]."""
        batch = [np.array(ids, np.int32) for ids in self._model.encode(texts, num_threads=1)]
        with_added = [number for number, text in enumerate(texts) if self._added.search(text)]
        exact = super().encode_batch([texts[number] for number in with_added])
        for number, ids in zip(with_added, exact, strict=True):
            batch[number] = ids
        return batch


def build_encoder(tokenizer: CorpusTokenizer, sample: Sequence[str] = ()) -> Encoder:
    """Builds the fastest encoder whose ids are those of `tokenizer`.

    Args:
        tokenizer: says what is right.
        sample: texts of the corpus to try the fast path on, besides built-in ones.
    """
    exact = TokenizerEncoder(tokenizer)
    fast: WordPieceEncoder | SentencePieceEncoder | None = _wordpiece_encoder(tokenizer)
    if hasattr(tokenizer, "sp_model"):
        fast = SentencePieceEncoder(tokenizer)
    if fast is None:
        return exact
    texts = [*_TRIAL, *sample]
    for text, fast_ids, exact_ids in zip(
        texts, fast.encode_batch(texts), exact.encode_batch(texts), strict=True
    ):
        if not np.array_equal(fast_ids, exact_ids):
            kind = type(fast).__name__
            _log.warning("%s differs from the tokenizer on %r; it is not used", kind, text[:80])
            return exact
    return fast


def _wordpiece_encoder(tokenizer: CorpusTokenizer) -> WordPieceEncoder | None:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or type(backend.model).__name__ != "WordPiece":
        return None
    try:
        import nanotoken

        return WordPieceEncoder(nanotoken.Tokenizer(backend))
    except (ImportError, ValueError) as error:
        _log.warning("nanotoken does not serve this tokenizer (%s); the slow path is used", error)
        return None


def open_tokenizer(name_or_path: str, do_lower_case: bool | None = None) -> CorpusTokenizer:
    """Opens a tokenizer to build and show corpora with: `load_tokenizer`'s ids, not its imports.

    Folders of the common kinds are read directly, in milliseconds; all others as `load_tokenizer`
    does, whose arguments and errors these are.
    """
    tokenizer = open_known_tokenizer(name_or_path, do_lower_case)
    return load_tokenizer(name_or_path, do_lower_case) if tokenizer is None else tokenizer


def open_known_tokenizer(
    name_or_path: str, do_lower_case: bool | None = None
) -> KnownTokenizer | None:
    """Opens a tokenizer of a common kind, read without transformers; None for others."""
    from .known_tokenizers import read_known_tokenizer

    folder = _local_folder(name_or_path)
    return None if folder is None else read_known_tokenizer(folder, do_lower_case)


def _local_folder(name_or_path: str) -> str | None:
    """Returns the folder with the files of a name; None where it has yet to be found out."""
    if os.path.isdir(name_or_path):
        return name_or_path
    if os.path.isfile(name_or_path):
        return None
    path = resolve_model_path(name_or_path)
    if os.path.isdir(path):
        return path
    cached = cached_file(path, "config.json")
    return None if cached is None else os.path.dirname(cached)


def load_tokenizer(
    name_or_path: str, do_lower_case: bool | None = None, use_slow: bool = False
) -> PreTrainedTokenizerBase:
    """Loads a Hugging Face tokenizer.

    Args:
        name_or_path: a folder, a sentencepiece `.model` file, `package:NAME` for the model that
            an installed package carries, or a hub name.
        do_lower_case: overrides what the tokenizer's own configuration says of capitals. Where
            neither says anything, and of accents where the configuration does not, BERT's kind
            does what its vocabulary can come from (:mod:`.casing`).
        use_slow: takes the tokenizer that is written in Python where there is one.

    Raises:
        UserError: there is no tokenizer of that name, its files are broken or say other ids than
            it has, or it does not heed ``do_lower_case``.
    """
    if name_or_path.endswith(SENTENCEPIECE_SUFFIX) and os.path.isfile(name_or_path):
        return load_sentencepiece(name_or_path, do_lower_case)
    path = name_or_path if os.path.isdir(name_or_path) else resolve_model_path(name_or_path)
    options: dict[str, Any] = {"use_fast": not use_slow, "trust_remote_code": False}
    if do_lower_case is not None:
        options["do_lower_case"] = do_lower_case
    folder = _local_folder(name_or_path)
    if folder is not None:
        from .tokenizer_folders import check_files

        try:
            check_files(folder)
        except (OSError, ValueError) as error:
            raise _no_tokenizer(name_or_path, error) from None
    tokenizer = _load(name_or_path, path, options)
    casing = None
    if folder is not None and hasattr(tokenizer, "do_lower_case") and _is_berts(tokenizer):
        casing = undeclared_casing(folder, do_lower_case)
    if casing is not None:
        if do_lower_case is None:
            say_casing(name_or_path, casing)
        decided = {"do_lower_case": casing.lower_case, "strip_accents": casing.strip_accents}
        tokenizer = _load(name_or_path, path, {**options, **decided})
    if do_lower_case is not None and casing_of(tokenizer)[0] is (not do_lower_case):
        raise UserError(
            f"{name_or_path}: --do_lower_case does not apply, as its tokenizer.json has its "
            "own normalisation; leave it out"
        )
    if folder is not None:
        check_ids(name_or_path, folder, tokenizer)
    return tokenizer


def _is_berts(tokenizer: PreTrainedTokenizerBase) -> bool:
    normalizer = getattr(getattr(tokenizer, "backend_tokenizer", None), "normalizer", None)
    return type(normalizer).__name__ == "BertNormalizer"


def _load(name_or_path: str, path: str, options: dict[str, Any]) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    try:
        return _with_vocab(AutoTokenizer.from_pretrained(path, local_files_only=True, **options))
    except Exception as error:
        # transformers raises many kinds (OSError, ValueError, KeyError, its own) for bad files.
        if os.path.isdir(path):
            bert_options = {name: value for name, value in options.items() if name in _BERT_OPTIONS}
            return _by_vocabulary_file(name_or_path, path, bert_options, error)
        if not hub_is_reachable():
            raise _no_tokenizer(name_or_path, error) from None
    try:
        return _with_vocab(AutoTokenizer.from_pretrained(path, **options))
    except Exception as error:
        raise _no_tokenizer(name_or_path, error) from None


def _with_vocab(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Refuses what transformers makes where it finds no vocabulary: special tokens alone."""
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
        raise UserError("there is no vocabulary but special tokens")
    return tokenizer


def _by_vocabulary_file(
    name_or_path: str, folder: str, options: dict[str, Any], error: Exception
) -> PreTrainedTokenizerBase:
    """Loads the tokenizer of a folder whose configuration leads nowhere, as of Megatron's BERTs.

    Those name a class that transformers has not, or have sentencepiece where it looks for a
    BertTokenizer's words. A `tokenizer.json` that cannot be loaded stays an error.
    """
    from transformers import BertTokenizer

    try:
        if os.path.isfile(os.path.join(folder, "tokenizer.json")):
            raise error
        if "[CLS]" in (read_words(folder) or {}):
            return BertTokenizer.from_pretrained(folder, local_files_only=True, **options)
        models = [name for name in os.listdir(folder) if name.endswith(SENTENCEPIECE_SUFFIX)]
        if len(models) == 1:
            model = os.path.join(folder, models[0])
            return load_sentencepiece(model, options.get("do_lower_case"))
    except Exception as fallback_error:
        raise _no_tokenizer(name_or_path, fallback_error) from None
    raise _no_tokenizer(name_or_path, error) from None


def _no_tokenizer(name_or_path: str, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:160]
    return UserError(
        f"{name_or_path}: no tokenizer can be loaded from it ({type(error).__name__}: {reason}); "
        f"give a folder with tokenizer.json or vocab.txt, a sentencepiece .model file, "
        f"package:NAME or a hub name"
    )


class HasVocabulary(Protocol):
    """Any tokenizer: transformers', or that of a ``tokenizer.json``."""

    def get_vocab(self) -> dict[str, int]:
        """Returns the id of every token, added ones too."""
        ...


class _VocabularyFile:
    """The vocabulary of a ``vocab.txt``."""

    def __init__(self, ids: dict[str, int]) -> None:
        self._ids = ids

    def get_vocab(self) -> dict[str, int]:
        return self._ids


def check_tokenizer_files(name_or_path: str) -> None:
    """Refuses a folder that no tokenizer can be loaded from, without loading one.

    Raises:
        UserError: it has no file of a vocabulary, or a ``tokenizer.json`` that cannot be parsed.
    """
    from .tokenizer_folders import parse_tokenizer

    folder = name_or_path if os.path.isdir(name_or_path) else resolve_model_path(name_or_path)
    names = os.listdir(folder)
    if not any(name in TOKENIZERS or name.endswith(SENTENCEPIECE_SUFFIX) for name in names):
        raise _no_tokenizer(name_or_path, FileNotFoundError("no file of a vocabulary is in it"))
    if "tokenizer.json" in names:
        try:
            parse_tokenizer(os.path.join(folder, "tokenizer.json"))
        except Exception as error:  # its own kind, which has no class of its own
            raise _no_tokenizer(name_or_path, error) from None


def read_tokenizer_file(name_or_path: str) -> HasVocabulary | None:
    """Reads the ``tokenizer.json`` or ``vocab.txt`` of a local model, in milliseconds.

    None where there is neither. transformers may add tokens of its other files to these.
    """
    if os.path.isfile(name_or_path):
        return None
    folder = name_or_path if os.path.isdir(name_or_path) else resolve_model_path(name_or_path)
    path = os.path.join(folder, "tokenizer.json")
    if not os.path.isfile(path):
        try:
            ids = read_words(folder)
        except (OSError, ValueError) as error:
            raise _no_tokenizer(name_or_path, error) from None
        return None if ids is None or "[CLS]" not in ids else _VocabularyFile(ids)
    from .tokenizer_folders import parse_tokenizer

    try:
        tokenizer: HasVocabulary = parse_tokenizer(path)
    except Exception:  # its own kind of error; loading the tokenizer says what is wrong
        return None
    return tokenizer


def check_fingerprint(
    prefix: str, record: TokenizerRecord | None, fingerprint: str, tokenizer_name: str
) -> None:
    """Refuses a corpus that was built with another vocabulary.

    Raises:
        UserError: what the corpus remembers of its tokenizer has another fingerprint.
    """
    if record is not None and record.fingerprint != fingerprint:
        raise UserError(
            f"{prefix}: was built with the vocabulary of {record.name}, which is not that of "
            f"{tokenizer_name}: build it with that tokenizer"
        )


def vocabulary_fingerprint(tokenizer: HasVocabulary) -> str:
    """Returns the vocabulary's hexadecimal SHA-256: every token, added ones too, by id.

    Tokenizers with the same fingerprint give every id the same meaning.
    """
    digest = hashlib.sha256()
    for token, index in sorted(tokenizer.get_vocab().items(), key=lambda item: (item[1], item[0])):
        digest.update(f"{index}\t{token}\n".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def embedding_rows(tokenizer: HasVocabulary) -> int:
    """Returns how many rows a model's word embeddings must have: one more than the highest id.

    This is not the number of tokens: a vocabulary with a token twice has ids that mean nothing.
    """
    return 1 + max(tokenizer.get_vocab().values(), default=-1)


def casing_of(tokenizer: Any) -> tuple[bool | None, bool | None]:
    """Tells whether a tokenizer lower-cases, and whether it strips accents; None where unknown."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return getattr(tokenizer, "do_lower_case", None), None
    capital, accent = (
        letter if backend.normalizer is None else backend.normalizer.normalize_str(letter)
        for letter in ("A", "é")
    )
    return "A" not in capital, "é" not in unicodedata.normalize("NFC", accent)


def check_casing(
    prefix: str, record: TokenizerRecord | None, tokenizer: Any, tokenizer_name: str
) -> None:
    """Refuses a corpus whose tokenizer treated capitals or accents otherwise.

    Raises:
        UserError: it did.
    """
    if record is None:
        return
    recorded = (record.lower_case, record.strips_accents)
    for built, actual, words in zip(recorded, casing_of(tokenizer), _CASINGS, strict=True):
        if built is not None and actual is not None and built != actual:
            remedy = words[2].format(str(built).lower(), tokenizer_name)
            raise UserError(
                f"{prefix}: was built with a tokenizer that {words[built]}, and that of "
                f"{tokenizer_name} {words[actual]}: build the corpus with that tokenizer, or "
                f"{remedy} where the corpus is right"
            )


def special_token_ids(tokenizer: CorpusTokenizer) -> dict[str, int]:
    """Returns the ids of cls, sep, pad, mask and unk, as far as the tokenizer has them."""
    ids = {role: getattr(tokenizer, f"{role}_token_id") for role in _ROLES}
    return {role: int(index) for role, index in ids.items() if index is not None}


def required_token_ids(tokenizer: CorpusTokenizer, name: str) -> dict[str, int]:
    """Returns the ids of the special tokens, among them all that a BERT reads or is masked with.

    Args:
        tokenizer: whose they are.
        name: what the user gave, for messages.

    Raises:
        UserError: one is missing.
    """
    ids = special_token_ids(tokenizer)
    missing = [role for role in _BERTS_ROLES if role not in ids]
    if missing:
        raise UserError(
            f"{name}: its tokenizer has no {' or '.join(missing)} token; give the tokenizer of a "
            "BERT-like model"
        )
    return ids


def describe_tokenizer(tokenizer: CorpusTokenizer, name: str) -> TokenizerRecord:
    """Makes the record that a corpus keeps of its tokenizer."""
    lower_case, strips_accents = casing_of(tokenizer)
    return TokenizerRecord(
        name=name,
        fingerprint=vocabulary_fingerprint(tokenizer),
        vocab_size=embedding_rows(tokenizer),
        special_ids=special_token_ids(tokenizer),
        lower_case=lower_case,
        strips_accents=strips_accents,
    )

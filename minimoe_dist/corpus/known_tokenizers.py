"""Builds tokenizers of BERT's and RoBERTa's kinds from their files, without transformers.

Importing transformers takes seconds of processor time. What it does with these files takes
milliseconds: a class builds its own pipeline around the folder's vocabulary, and special tokens are
added. The same is done here through the same library, for the folders that `TokenizerFolder`
understands. `tests/corpus/test_known_tokenizers.py` holds each kind of them against transformers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, normalizers, pre_tokenizers, processors
from tokenizers.models import BPE, WordPiece

from ..errors import UserError
from .casing import say_casing, undeclared_casing
from .declared_tokens import check_ids
from .tokenizer_folders import (
    BERT,
    ROBERTA,
    TokenizerFolder,
    UnknownKindError,
    parse_tokenizer,
)

# Another minor version may build these tokenizers otherwise: then transformers is asked.
_SAME_AS = "5.23."
_CLEANED = (" .", " ?", " !", " ,", " ' ", " n't", " 'm", " 's", " 've", " 're")


class KnownTokenizer:
    """Offers of a transformers tokenizer what corpora are built and shown with.

    Attributes:
        name_or_path: the folder.
        backend_tokenizer: makes the ids.
        do_lower_case: whether it lower-cases; None where its class does not say.
        cls_token_id, sep_token_id, pad_token_id, mask_token_id, unk_token_id: ids of special
            tokens; None for those that it has not.
    """

    is_fast = True

    def __init__(
        self,
        name_or_path: str,
        backend: Tokenizer,
        special_tokens: Mapping[str, str],
        do_lower_case: bool | None,
        cleans_up: bool,
    ) -> None:
        self.name_or_path = name_or_path
        self.backend_tokenizer = backend
        self.do_lower_case = do_lower_case
        # transformers joins what a WordPiece left apart; byte pairs know their spaces.
        self._cleans_up = cleans_up and not isinstance(backend.model, BPE)
        ids = {role: backend.token_to_id(token) for role, token in special_tokens.items()}
        self.cls_token_id, self.sep_token_id = ids.get("cls"), ids.get("sep")
        self.pad_token_id, self.mask_token_id = ids.get("pad"), ids.get("mask")
        self.unk_token_id = ids.get("unk")

    def __len__(self) -> int:
        return self.backend_tokenizer.get_vocab_size()

    def __call__(
        self,
        texts: list[str],
        *,
        add_special_tokens: bool,
        return_offsets_mapping: bool = False,
        return_attention_mask: bool = False,
        return_token_type_ids: bool = False,
        verbose: bool = False,
    ) -> dict[str, list[Any]]:
        """Encodes texts to ids, and to the characters [start, end) that each token stands for."""
        assert not (return_attention_mask or return_token_type_ids), "ids and places only"
        batch = self.backend_tokenizer.encode_batch(texts, add_special_tokens=add_special_tokens)
        encoded: dict[str, list[Any]] = {"input_ids": [encoding.ids for encoding in batch]}
        if return_offsets_mapping:
            encoded["offset_mapping"] = [encoding.offsets for encoding in batch]
        return encoded

    def get_vocab(self) -> dict[str, int]:
        """Returns the id of every token, added ones too."""
        return self.backend_tokenizer.get_vocab()

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str | None]:
        """Returns the token of each id; None where there is none."""
        return [self.backend_tokenizer.id_to_token(index) for index in ids]

    def decode(self, ids: Sequence[int]) -> str:
        """Returns the text that ids stand for, special tokens too."""
        text = self.backend_tokenizer.decode(list(ids), skip_special_tokens=False)
        for piece in _CLEANED if self._cleans_up else ():
            text = text.replace(piece, piece.strip())
        return text


def read_known_tokenizer(folder: str, do_lower_case: bool | None = None) -> KnownTokenizer | None:
    """Reads the tokenizer of a model's folder, with the ids that transformers' would give.

    Args:
        folder: an existing one.
        do_lower_case: overrides what the folder says.

    Returns:
        None for folders of other kinds and for broken files: transformers reads the former and
        says what is wrong with the latter.

    Raises:
        UserError: as :func:`.declared_tokens.check_ids`.
    """
    if not version("transformers").startswith(_SAME_AS):
        return None
    try:
        return _build(TokenizerFolder.read(folder), do_lower_case)
    except UserError:
        raise
    except Exception:  # those of tokenizers have no class of their own
        return None


def _build(folder: TokenizerFolder, do_lower_case: bool | None) -> KnownTokenizer:
    if do_lower_case is not None and folder.class_name != BERT:
        raise UnknownKindError(f"{folder.path}: only BERT's class takes --do_lower_case")
    named, extra = folder.named_tokens(), folder.extra_tokens()
    lower_case: bool | None = None
    if folder.class_name == BERT:
        casing = undeclared_casing(folder.path, do_lower_case)
        if casing is not None and do_lower_case is None:
            say_casing(folder.path, casing)
        lower_case = folder.flag("do_lower_case", True) if do_lower_case is None else do_lower_case
        accents = folder.settings.get("strip_accents")
        if casing is not None:
            lower_case, accents = casing.lower_case, casing.strip_accents
        backend = _wordpiece(folder, lower_case, accents, str(named["unk"]))
    elif folder.class_name == ROBERTA:
        backend = _byte_pairs(folder)
    else:
        backend = parse_tokenizer(folder.file("tokenizer.json"))
    # transformers takes away the file's own limits whenever it is asked for whole texts.
    backend.no_truncation()
    backend.no_padding()
    _add_tokens(backend, folder.added_tokens(), named, extra)
    if folder.class_name == ROBERTA:
        _trim_places(backend, folder, named)
    if backend.get_vocab_size() <= len({str(token) for token in [*named.values(), *extra]}):
        raise UnknownKindError(f"{folder.path}: no vocabulary but special tokens")
    tokenizer = KnownTokenizer(
        folder.path,
        backend,
        {role: str(token) for role, token in named.items()},
        lower_case,
        folder.flag("clean_up_tokenization_spaces", False),
    )
    check_ids(folder.path, folder.path, tokenizer)
    return tokenizer


def _wordpiece(
    folder: TokenizerFolder, lower_case: bool, accents: Any, unk_token: str
) -> Tokenizer:
    """Builds BERT's pipeline around the vocabulary; no more of ``tokenizer.json`` counts."""
    vocabulary: Any = folder.model("WordPiece")["vocab"] if folder.serialized else None
    backend = Tokenizer(WordPiece(vocabulary or folder.file("vocab.txt"), unk_token=unk_token))
    if not isinstance(accents, bool | None):
        raise UnknownKindError(f"{folder.path}: strip_accents is {accents!r}")
    backend.normalizer = normalizers.BertNormalizer(
        clean_text=True,
        handle_chinese_chars=folder.flag("tokenize_chinese_chars", True),
        strip_accents=accents,
        lowercase=lower_case,
    )
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    return backend


def _byte_pairs(folder: TokenizerFolder) -> Tokenizer:
    """Builds RoBERTa's pipeline around vocabulary and merges."""
    vocabulary: Any
    merges: Any
    if folder.serialized:
        vocabulary, merges = (folder.model("BPE")[name] for name in ("vocab", "merges"))
        merges = [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in merges]
    else:
        vocabulary, merges = folder.file("vocab.json"), folder.file("merges.txt")
    affixes = {"continuing_subword_prefix": "", "end_of_word_suffix": ""}
    backend = Tokenizer(BPE(vocab=vocabulary, merges=merges, fuse_unk=False, **affixes))
    prefix = folder.flag("add_prefix_space", False)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    backend.decoder = decoders.ByteLevel()
    return backend


def _trim_places(
    backend: Tokenizer, folder: TokenizerFolder, named: Mapping[str, str | AddedToken]
) -> None:
    """Leaves the space before a word out of the place that its token is said to have."""
    ids: dict[str, Any] = {role: backend.token_to_id(str(token)) for role, token in named.items()}
    sep, cls = ((str(named[role]), ids[role]) for role in ("sep", "cls"))
    trims, prefix = folder.flag("trim_offsets", True), folder.flag("add_prefix_space", False)
    backend.post_processor = processors.RobertaProcessing(sep, cls, trims, prefix)


def _add_tokens(
    backend: Tokenizer,
    added: Mapping[int, AddedToken],
    named: Mapping[str, str | AddedToken],
    extra: Sequence[str | AddedToken],
) -> None:
    """Adds what the pipeline has not yet; new tokens get the next ids, in this order."""
    existing = backend.get_added_tokens_decoder().values()
    as_written = {repr(token) for token in existing}
    tokens: list[str | AddedToken] = [
        added[index] for index in sorted(added) if repr(added[index]) not in as_written
    ]
    texts = {str(token) for token in [*existing, *tokens]}
    for token in [*named.values(), *extra]:
        if str(token) not in texts and token not in tokens:
            tokens.append(token)
    roles = {str(token) for token in named.values()}
    for number, token in enumerate(tokens):
        if isinstance(token, str):
            tokens[number] = AddedToken(token, special=True)
        elif str(token) in roles:
            token.special = True
    backend.add_tokens(tokens)

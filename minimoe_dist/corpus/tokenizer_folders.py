"""Reads the files of a model's folder that say what its tokenizer is, as transformers does.

Only what is listed here is understood. `TokenizerFolder.read` refuses a folder in which anything
else could matter: a class, a file or a setting that is not listed, or a value of another kind.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken, Tokenizer

from ..foreign import check_file, read_json, read_text
from .word_lists import MOST_TOKENIZER_BYTES, read_words

BERT, ROBERTA, GENERIC = "BertTokenizer", "RobertaTokenizer", "TokenizersBackend"
_CLASSES = {
    "BertTokenizer": BERT,
    "BertTokenizerFast": BERT,
    "RobertaTokenizer": ROBERTA,
    "RobertaTokenizerFast": ROBERTA,
    "PreTrainedTokenizerFast": GENERIC,
    "TokenizersBackend": GENERIC,
}
CLASS_OF_MODEL = {
    "bert": BERT,
    "distilbert": BERT,
    "electra": BERT,
    "ernie": BERT,
    "megatron-bert": BERT,
    "roberta": ROBERTA,
}
# In transformers' order, in which tokens that the vocabulary lacks get their ids.
_ROLES = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
_DEFAULT_TOKENS: Mapping[str, Mapping[str, str]] = {
    BERT: {"unk": "[UNK]", "sep": "[SEP]", "pad": "[PAD]", "cls": "[CLS]", "mask": "[MASK]"},
    ROBERTA: {"bos": "<s>", "eos": "</s>", "unk": "<unk>", "sep": "</s>", "pad": "<pad>",
              "cls": "<s>", "mask": "<mask>"},
    GENERIC: {},
}  # fmt: skip
_ROLE_NAMES = {f"{role}_token" for role in _ROLES}
_EXTRA_NAMES = ("extra_special_tokens", "additional_special_tokens")
_HEEDED_SETTINGS = {
    "tokenizer_class",
    "do_lower_case",
    "strip_accents",
    "tokenize_chinese_chars",
    "add_prefix_space",
    "trim_offsets",
    "clean_up_tokenization_spaces",
    "added_tokens_decoder",
    *_EXTRA_NAMES,
    *_ROLE_NAMES,
}
# What is often written there and changes no id of a text.
_IDLE_SETTINGS = {
    "backend",
    "do_basic_tokenize",
    "errors",
    "is_local",
    "local_files_only",
    "max_len",
    "max_length",
    "model_input_names",
    "model_max_length",
    "name_or_path",
    "pad_to_multiple_of",
    "pad_token_type_id",
    "padding_side",
    "special_tokens_map_file",
    "stride",
    "tokenizer_file",
    "truncation_side",
    "truncation_strategy",
    "use_fast",
}
# Files that transformers takes into account too.
_JSON_FILES = (
    "config.json",
    "tokenizer_config.json",
    "tokenizer.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
)
_TEXT_FILES = ("vocab.txt", "merges.txt")
_OTHER_FILES = re.compile(r"tekken\.json|tokenizer\.model|tiktoken\.model|^added_tokens\.json$")


class UnknownKindError(ValueError):
    """A folder is none of the kinds that are understood here."""


@dataclass(frozen=True)
class TokenizerFolder:
    """Holds the parsed files of a folder that its tokenizer is made from.

    Attributes:
        path: of the folder.
        class_name: of the class that transformers would take: BERT, ROBERTA or GENERIC.
        settings: ``tokenizer_config.json``.
        special_tokens: ``special_tokens_map.json``, where it counts.
        serialized: ``tokenizer.json``; None where there is none.
    """

    path: str
    class_name: str
    settings: dict[str, Any]
    special_tokens: dict[str, Any]
    serialized: dict[str, Any] | None

    @classmethod
    def read(cls, path: str) -> TokenizerFolder:
        """Parses the files of a folder.

        Raises:
            UnknownKindError: something is there that is not understood here.
            ValueError, KeyError, OSError: a file is broken.
        """
        config = _read_json(path, "config.json")
        settings = _read_json(path, "tokenizer_config.json") or {}
        if settings.get("never_split", ()) is None:
            del settings["never_split"]
        serialized = _read_json(path, "tokenizer.json")
        special: dict[str, Any] = {}
        if "added_tokens_decoder" not in settings:
            special = _read_json(path, "special_tokens_map.json") or {}
        unknown = [name for name in os.listdir(path) if _OTHER_FILES.search(name)]
        unknown += set(settings) - _HEEDED_SETTINGS - _IDLE_SETTINGS
        unknown += set(special) - _ROLE_NAMES - set(_EXTRA_NAMES)
        if unknown:
            raise UnknownKindError(f"{path}: {unknown[0]} may matter")
        name = _class_name(path, config, settings, serialized is not None)
        return cls(path, name, settings, special, serialized)

    def file(self, name: str) -> str:
        """Returns the path of a file that has to be there."""
        path = os.path.join(self.path, name)
        if not os.path.isfile(path):
            raise UnknownKindError(f"{path}: no such file")
        check_file(path, MOST_TOKENIZER_BYTES)
        return path

    def model(self, kind: str) -> dict[str, Any]:
        """Returns the model inside ``tokenizer.json``, which has to be of a kind."""
        assert self.serialized is not None
        model: dict[str, Any] = self.serialized["model"]
        if model["type"] != kind or not isinstance(model["vocab"], dict):
            raise UnknownKindError(f"{self.path}/tokenizer.json: its model is no {kind}")
        return model

    def flag(self, name: str, default: bool) -> bool:
        """Returns a setting that is true or false."""
        value = self.settings.get(name, default)
        if not isinstance(value, bool):
            raise UnknownKindError(f"{self.path}: {name} is {value!r}")
        return value

    def added_tokens(self) -> dict[int, AddedToken]:
        """Returns the tokens beside the vocabulary, by the ids that the files give them."""
        if "added_tokens_decoder" in self.settings:
            listed = self.settings["added_tokens_decoder"].items()
            return {int(index): AddedToken(**token) for index, token in listed}
        tokens = [] if self.serialized is None else self.serialized["added_tokens"]
        return {
            token["id"]: AddedToken(**{key: value for key, value in token.items() if key != "id"})
            for token in tokens
        }

    def named_tokens(self) -> dict[str, str | AddedToken]:
        """Returns the special token of each role that has one, in the order of the roles."""
        by_text = {str(token): token for token in self.added_tokens().values()}
        defaults = dict(_DEFAULT_TOKENS[self.class_name])
        padding = None if self.serialized is None else self.serialized.get("padding")
        if self.class_name == GENERIC and padding:
            defaults["pad"] = padding["pad_token"]
        tokens: dict[str, str | AddedToken] = {}
        for role in _ROLES:
            name, default = f"{role}_token", defaults.get(role)
            token = _token(self.settings.get(name, default), typed=True)
            if name in self.special_tokens:
                token = _token(self.special_tokens[name], typed=False)
            if token is not None:
                tokens[role] = by_text.get(str(token), token)
            elif default is not None:
                raise UnknownKindError(f"{self.path}: {name} is taken away")
        return tokens

    def extra_tokens(self) -> list[str | AddedToken]:
        """Returns the special tokens without a role."""
        lists = [
            (source[name], typed)
            for source, typed in ((self.settings, True), (self.special_tokens, False))
            for name in _EXTRA_NAMES
            if source.get(name)
        ]
        if len(lists) > 1:
            raise UnknownKindError(f"{self.path}: several lists of special tokens")
        tokens: list[str | AddedToken] = []
        for values, typed in lists:
            if not isinstance(values, list):
                raise UnknownKindError(f"{self.path}: special tokens with names of their own")
            for value in values:
                token = _token(value, typed=True) if typed or isinstance(value, str) else None
                if token is None:
                    raise UnknownKindError(f"{self.path}: {value!r} as a special token")
                tokens.append(token)
        return tokens


def check_files(folder: str) -> None:
    """Reads whatever a folder's tokenizer may be made from, as libraries do so without limits.

    Raises:
        ValueError, OSError: a file is broken or none; the message names it.
    """
    for name in (*_JSON_FILES, *_TEXT_FILES):
        path = os.path.join(folder, name)
        if os.path.lexists(path):
            read = read_json if name in _JSON_FILES else check_file
            try:
                read(path, MOST_TOKENIZER_BYTES)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None


def parse_tokenizer(path: str) -> Tokenizer:
    """Makes the tokenizer of a ``tokenizer.json``.

    Raises:
        Exception: of the library's own kind, or as `read_text`: it is none.
    """
    return Tokenizer.from_str(read_text(path, MOST_TOKENIZER_BYTES))


def _read_json(folder: str, name: str) -> dict[str, Any] | None:
    path = os.path.join(folder, name)
    if not os.path.isfile(path):
        return None
    values = read_json(path, MOST_TOKENIZER_BYTES)
    if not isinstance(values, dict):
        raise UnknownKindError(f"{path}: holds no object")
    return values


def _class_name(
    path: str, config: dict[str, Any] | None, settings: dict[str, Any], has_serialized: bool
) -> str:
    """Returns the class that AutoTokenizer takes, or `load_tokenizer` where that one finds none."""
    if config is not None and ("auto_map" in config or "model_name" in config):
        raise UnknownKindError(f"{path}: the model may bring a tokenizer of its own")
    named = settings.get("tokenizer_class") or (config or {}).get("tokenizer_class")
    of_model = None if config is None else CLASS_OF_MODEL[config["model_type"]]
    if named is not None:
        return _CLASSES[named]
    if of_model is not None:
        return of_model
    if has_serialized:
        return GENERIC
    if "[CLS]" not in (read_words(path) or {}):
        raise UnknownKindError(f"{path}: nothing says what its words are for")
    return BERT


def _token(value: Any, *, typed: bool) -> str | AddedToken | None:
    """Parses a token of a file: text, or an object that says how it is found in texts."""
    if value is None or isinstance(value, str):
        return value
    options = dict(value)
    if not typed:
        options["special"] = True
    elif options.pop("__type") != "AddedToken":
        raise UnknownKindError(f"{value!r} is no token")
    return AddedToken(**options)

"""Holds the ids that a tokenizer gives its tokens against those that its folder's files say.

transformers counts added tokens through, whatever ids their files give them, and gives special
tokens that a vocabulary lacks the ids behind it. A model was trained with other rows than those.
"""

from __future__ import annotations

import os
from typing import Any

from ..errors import UserError
from ..foreign import is_whole_number
from .casing import read_json

_NEEDED = ("unk", "cls", "sep")  # a vocabulary without padding or a mask is one all the same
_MARK = "\ufeff"


def check_ids(name: str, folder: str, tokenizer: Any) -> None:
    """Refuses a tokenizer whose ids are not those of its files.

    Args:
        name: what the user gave, for messages.
        folder: of its files.
        tokenizer: made of them.

    Raises:
        UserError: an added token got another id than a file declares; the unknown, first or last
            token has no id in the files; or a byte order mark is read as part of a token.
    """
    declared = _declared_ids(folder)
    known = tokenizer.get_vocab() if declared else {}
    for token, (index, file) in declared.items():
        if known.get(token) != index:
            gets = f"is {known[token]} once loaded" if token in known else "is lost in loading"
            raise UserError(
                f"{name}: {file} says that {token} is {index}, which {gets}, so that the model "
                f"would read another row; put it into the vocabulary at {index}, with entries "
                "such as [unused1] before it where there are too few"
            )
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return
    first = _first_line(folder)
    if first.startswith(_MARK) and backend.model.token_to_id(first) is not None:
        raise UserError(
            f"{name}: its vocab.txt begins with a byte order mark, which makes another token of "
            f"{first.removeprefix(_MARK)}; save it as UTF-8 without one"
        )
    ids = {role: getattr(tokenizer, f"{role}_token_id") for role in _NEEDED}
    tokens = {
        role: tokenizer.convert_ids_to_tokens([index])[0]
        for role, index in ids.items()
        if index is not None
    }
    missing = {
        role: token
        for role, token in tokens.items()
        if token not in declared and backend.model.token_to_id(token) is None
    }
    if missing:
        raise UserError(
            f"{name}: its vocabulary has no {' or '.join(missing.values())}, which would get ids "
            "that no model was trained with; give a vocab.txt of one token a line, or name its own "
            f"tokens in tokenizer_config.json ({', '.join(f'{role}_token' for role in missing)})"
        )


def _declared_ids(folder: str) -> dict[str, tuple[int, str]]:
    """Returns the ids of added tokens, each with its file, from the files that transformers asks.

    What loading will refuse is left out.
    """
    settings = "tokenizer_config.json"
    decoder = read_json(folder, settings).get("added_tokens_decoder")
    if isinstance(decoder, dict):
        return {
            token["content"]: (int(index), settings)
            for index, token in decoder.items()
            if isinstance(token, dict) and is_whole_number(index)
        }
    added, serialized = "added_tokens.json", "tokenizer.json"
    declared = {
        token: (index, added)
        for token, index in read_json(folder, added).items()
        if isinstance(index, int)
    }
    for token in read_json(folder, serialized).get("added_tokens") or []:
        declared.setdefault(token["content"], (token["id"], serialized))
    return declared


def _first_line(folder: str) -> str:
    try:
        with open(os.path.join(folder, "vocab.txt"), "rb") as stream:
            return stream.readline(1 << 16).decode("utf-8", "replace").strip()
    except OSError:
        return ""

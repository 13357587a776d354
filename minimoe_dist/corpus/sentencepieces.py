"""Loads tokenizers from sentencepiece's `.model` files alone: XLM-R's, ALBERT's, Megatron's."""

from __future__ import annotations

import json
import os
import tempfile
from typing import TYPE_CHECKING, Any

from ..errors import UserError

if TYPE_CHECKING:
    import sentencepiece
    from transformers import PreTrainedTokenizerBase

SENTENCEPIECE_SUFFIX = ".model"
_XLM_R_FILE = "sentencepiece.bpe.model"
_ALBERT_FILE = "spiece.model"
# What Megatron appends to the pieces, in its order, unless they are pieces already.
_MEGATRON_TOKENS = {
    "cls_token": "<CLS>",
    "sep_token": "<SEP>",
    "additional": "<EOD>",
    "mask_token": "<MASK>",
}


def load_sentencepiece(path: str, do_lower_case: bool | None = None) -> PreTrainedTokenizerBase:
    """Loads the tokenizer that a `.model` file stands for.

    A file named as XLM-R's has its layout: four special ids first, the pieces' ids shifted. A
    file with pieces `[CLS]` and `[SEP]` is ALBERT's. All others get Megatron's layout: the pieces,
    then `<CLS>`, `<SEP>`, `<EOD>`, `<MASK>` and what is missing of padding, begin and end.

    Args:
        path: the file.
        do_lower_case: for ALBERT's; None for its default, which lower-cases. The others'
            normalisation is in the file.

    Raises:
        UserError: it is no such file, or lower-casing was asked for where there is none.
    """
    import sentencepiece

    try:
        model = sentencepiece.SentencePieceProcessor(model_file=path)
    except Exception as error:
        # Errors of its C++ side come as several kinds.
        reason = " ".join(str(error).split())[:120]
        raise UserError(
            f"{path}: is no sentencepiece model ({reason}); give the file that spm_train wrote"
        ) from None
    is_albert = all(_has_piece(model, piece) for piece in ("[CLS]", "[SEP]"))
    if do_lower_case is not None and not is_albert:
        raise UserError(
            f"{path}: --do_lower_case does not apply, as the file has its own normalisation; "
            f"leave it out"
        )
    if os.path.basename(path) == _XLM_R_FILE:
        return _through_folder(path, _XLM_R_FILE, "xlm-roberta", {})
    if is_albert:
        options = {} if do_lower_case is None else {"do_lower_case": do_lower_case}
        return _through_folder(path, _ALBERT_FILE, "albert", options)
    return _megatron_tokenizer(path, model)


def _has_piece(model: sentencepiece.SentencePieceProcessor, piece: str) -> bool:
    return model.piece_to_id(piece) != model.unk_id()


def _through_folder(
    path: str, name: str, model_type: str, options: dict[str, Any]
) -> PreTrainedTokenizerBase:
    """Loads the file as part of a model's folder, as transformers wants to have it."""
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as folder:
        os.symlink(os.path.abspath(path), os.path.join(folder, name))
        with open(os.path.join(folder, "config.json"), "w", encoding="utf-8") as stream:
            json.dump({"model_type": model_type}, stream)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, **options)
    tokenizer.name_or_path = path
    return tokenizer


def _megatron_tokenizer(
    path: str, model: sentencepiece.SentencePieceProcessor
) -> PreTrainedTokenizerBase:
    from transformers.tokenization_utils_sentencepiece import SentencePieceBackend

    tokens = dict(_MEGATRON_TOKENS)
    for role, index in (
        ("pad_token", model.pad_id()),
        ("bos_token", model.bos_id()),
        ("eos_token", model.eos_id()),
    ):
        tokens[role] = model.id_to_piece(index) if index >= 0 else f"<{role[:3].upper()}>"
    tokenizer = SentencePieceBackend(vocab_file=path, unk_token=model.id_to_piece(model.unk_id()))
    for role, token in tokens.items():
        added = {"additional_special_tokens": [token]} if role == "additional" else {role: token}
        tokenizer.add_special_tokens(added)
    tokenizer.name_or_path = path
    return tokenizer

"""Reports what of a text did not become a corpus: shares, likely causes, the options that help."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..errors import UserError

KEPT = "kept"
_MUCH_LOST, _MUCH_UNKNOWN, _MUCH_EMPTY, _TOO_MUCH = 0.05, 0.02, 0.5, 0.5
_EMPTY = ("empty_documents", "records_without_text")
_DAMAGED = "damaged_files"
_CAUSES = {
    "short_sentences": "lines that are no whole sentences (wrapped text: --wrapped join; headings, "
    "lists and tables: --minimum_words and --minimum_characters keep shorter ones)",
    "records_without_text": "records whose text is elsewhere (--text_key)",
    "bad_json_records": "damaged JSON, or another format (--input_format)",
    "members_not_read": "members of archives that are no text (see the messages above)",
    _DAMAGED: "files that were not fetched whole (fetch them again)",
}
_INVALID = "text in another encoding (--encoding)"
_UNKNOWN = (
    "a vocabulary of another language, case or script (--tokenizer_name_or_path, "
    "--do_lower_case), or text in another encoding (--encoding)"
)


@dataclass(frozen=True)
class Losses:
    """Says how much of a text was left out, and why.

    Attributes:
        characters: those that were kept (`KEPT`), and those left out by kind.
        num_tokens: of the corpus; 0 where there are none yet.
        unknown_tokens: how many of them stand for what the vocabulary does not have.
        num_documents: of the corpus.
        counts: what was left out or repaired, and how often.
    """

    characters: Mapping[str, int]
    num_tokens: int = 0
    unknown_tokens: int = 0
    num_documents: int = 0
    counts: Mapping[str, int] = field(default_factory=dict)

    @property
    def _total(self) -> int:
        return sum(self.characters.values())

    def by_kind(self) -> dict[str, float]:
        """Returns the shares of characters that were left out, large ones first."""
        total = self._total
        lost = [(kind, n / total) for kind, n in self.characters.items() if kind != KEPT]
        return dict(sorted(lost, key=lambda item: -item[1]))

    @property
    def lost(self) -> float:
        """The share of characters that were left out."""
        return sum(self.by_kind().values())

    @property
    def unknown(self) -> float:
        """The share of tokens that are unknown."""
        return self.unknown_tokens / max(1, self.num_tokens)

    @property
    def empty(self) -> float:
        """The share of documents that have no sentence, records without text among them."""
        empty = sum(self.counts.get(kind, 0) for kind in _EMPTY)
        return empty / max(1, empty + self.num_documents)

    def describe(self) -> str:
        """Names the shares in one line."""
        parts = []
        if self._total:
            kinds = ", ".join(f"{share:.1%} {kind}" for kind, share in self.by_kind().items())
            parts.append(
                f"left out: {self.lost:.1%} of {self._total:,} characters"
                + (f" ({kinds})" if kinds else "")
            )
        if self.num_tokens:
            parts.append(f"unknown: {self.unknown:.1%} of the tokens")
        return "; ".join(parts)

    def report(self) -> list[str]:
        """Returns the shares and the warnings as lines."""
        described = self.describe()
        return [
            *([described] if described else []),
            *(f"warning: {warning}" for warning in self.warnings()),
        ]

    def warnings(self) -> list[str]:
        """Names the losses that are more than usual, with their likely cause."""
        lines = []
        if self.lost > _MUCH_LOST:
            lines.append(f"{self.lost:.0%} of the text is left out; {self._cause()}")
        if self.unknown > _MUCH_UNKNOWN:
            lines.append(f"{self.unknown:.0%} of the tokens are unknown; likely cause: {_UNKNOWN}")
        if self.empty > _MUCH_EMPTY:
            lines.append(
                f"{self.empty:.0%} of the documents have no sentence; "
                "likely cause: texts that are elsewhere (--text_key)"
            )
        if damaged := self.counts.get(_DAMAGED):
            lines.append(
                f"{damaged} damaged files or members, of which more may be missing than can be "
                f"counted; likely cause: {_CAUSES[_DAMAGED]}"
            )
        return lines

    def check(self, name: str) -> None:
        """Refuses a corpus most of which is missing or unknown.

        Args:
            name: of the corpus, for the message.

        Raises:
            UserError: more than half of the characters are left out, or of the tokens unknown.
        """
        if self.lost > _TOO_MUCH or self.unknown > _TOO_MUCH:
            raise UserError(f"{name}: {'; '.join(self.warnings())}; --force goes on all the same")

    def _cause(self) -> str:
        kind = next(iter(self.by_kind()))
        is_invalid = kind.startswith("invalid_") or kind == "replacement_characters"
        cause = _INVALID if is_invalid else _CAUSES.get(kind)
        return f"most as {kind}" + (f", likely cause: {cause}" if cause else "")

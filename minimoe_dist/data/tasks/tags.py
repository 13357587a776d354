"""Reads tags that mark chunks of words: a place in a chunk, and the chunk's type.

Files write them in several ways: ``B-PER``, ``B_PER``, ``PER-B``, ``b-per``, or the place alone;
and inner, last and single words are ``I``, ``E`` and ``S`` (BIO, BIOES), ``M`` (BMES), ``L`` and
``U`` (BILOU), or ``W`` (BMEW).
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping

OUTSIDE = ("O", "o", "_")
# As seqeval calls them.
_PLACES = dict(zip("BIMELSUW", "BIIEESSS", strict=True))
_PLACE = "(?P<place>[BIMELSUW])"
_FORMS = (
    re.compile(f"{_PLACE}-(?P<type>.*)", re.IGNORECASE),
    re.compile(f"{_PLACE}_(?P<type>.+)", re.IGNORECASE),
    re.compile(f"(?P<type>.+)-{_PLACE}", re.IGNORECASE),
    re.compile(f"(?P<type>.+)_{_PLACE}", re.IGNORECASE),
    # In lower case these may be parts of speech.
    re.compile(f"{_PLACE}(?P<type>)"),
)
_MOST = 0.9


def strangers(tags: Iterable[str], counts: Mapping[str, int]) -> frozenset[str]:
    """Finds what does not mark chunks, in a column nearly all of whose tags do so in one form.

    Args:
        tags: what stands in the column.
        counts: how often each tag is there, of lines that are surely words.

    Returns:
        Nothing where tags mark no chunks, or have no one form.
    """
    of_chunks = {tag: count for tag, count in counts.items() if tag not in OUTSIDE}
    form = _likeliest_form(of_chunks)
    fitting = sum(count for tag, count in of_chunks.items() if form.fullmatch(tag))
    if not fitting or fitting < _MOST * sum(of_chunks.values()):
        return frozenset()
    return frozenset(tag for tag in tags if tag not in OUTSIDE and not form.fullmatch(tag))


def chunk_tags(tags: Iterable[str]) -> list[str]:
    """Rewrites tags as seqeval knows them: ``O``, or one of B, I, E and S with the type.

    Of tags that mark no places, words in a row with one tag are a chunk.
    """
    tags = list(tags)
    form = _likeliest_form(Counter(tags))
    return [_chunk_tag(tag, form) for tag in tags]


def _likeliest_form(counts: Mapping[str, int]) -> re.Pattern[str]:
    """Returns the form that most tags have; the first one where none has any."""

    def fitting(form: re.Pattern[str]) -> int:
        return sum(count for tag, count in counts.items() if form.fullmatch(tag))

    return max(_FORMS, key=fitting)


def _chunk_tag(tag: str, form: re.Pattern[str]) -> str:
    if tag in OUTSIDE:
        return "O"
    match = form.fullmatch(tag)
    return f"{_PLACES[match['place'].upper()]}-{match['type']}" if match else f"I-{tag}"

"""Progress of reading: a bar on a terminal, lines in a log, nothing where none is wanted."""

import io
import sys

import pytest

from minimoe_dist.corpus import progress
from minimoe_dist.corpus.progress import BytesProgress


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, **options: bool) -> str:
    monkeypatch.setattr(sys, "stderr", stream)
    with BytesProgress("building", 2_000_000, 500_000, **options) as bar:
        for _ in range(3):
            bar.update(500_000)
    return stream.getvalue()


def test_a_log_gets_lines_and_not_one_for_every_update(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = shown(monkeypatch, io.StringIO()).splitlines()
    assert len(lines) == 1 and lines[0].startswith("building: 100% of 2.00MB, ")
    monkeypatch.setattr(progress, "_LINE_SECONDS", 0.0)
    lines = shown(monkeypatch, io.StringIO()).splitlines()
    assert [line.split()[1] for line in lines] == ["50%", "75%", "100%", "100%"]
    assert lines[0].endswith(" left") and "B/s" in lines[0] and "\r" not in "".join(lines)


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(monkeypatch, _Terminal())
    assert "\r" in text and "100%" in text


def test_nothing_is_shown_where_none_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(monkeypatch, io.StringIO(), shown=False) == ""
    assert shown(monkeypatch, _Terminal(), shown=False) == ""


def test_an_error_has_the_last_word(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with pytest.raises(KeyError), BytesProgress("building", 10):
        raise KeyError
    assert stream.getvalue() == ""


def test_inputs_without_a_byte_are_done(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with BytesProgress("formatting", 0):
        pass
    assert stream.getvalue().startswith("formatting: 100% of 0.00B")

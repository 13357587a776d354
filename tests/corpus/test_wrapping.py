"""Hard-wrapped text: recognised, joined, and nothing else touched."""

import io
import json
import tarfile
import textwrap

import pytest

from minimoe_dist.corpus.reading import Inputs, ReadingOptions, SentenceReader
from minimoe_dist.corpus.sentences import SentenceRules
from minimoe_dist.corpus.sources import WrappedSource
from minimoe_dist.corpus.streams import InputStream
from minimoe_dist.corpus.wrapping import Wrapping, recognise_wrapping
from tests.corpus.sources.documents import read

PROSE = [
    "The expedition left the harbour in the early morning, before the fog had lifted from the "
    "water, and nobody on the quay could tell how many of the boats were under way. It was the "
    "third attempt of that year; the first two had ended within sight of the lighthouse.",
    "What the captain wrote about the voyage was found much later, in a chest that had belonged "
    "to his sister. She had kept the letters in the order of their dates and tied them with a "
    "ribbon, but she had never opened them, as she told the few people who asked about it.",
    "Most of the letters describe the weather of those days. Some describe the crew, and a few, "
    "which are the best known, describe what the captain believed to be an island that no map "
    "had shown before. Later travellers found nothing at the place that he had given.",
]
GERMAN = [
    "Die Bundesregierung hat gestern eine umfangreiche Untersuchung der Wasserversorgung in den "
    "ländlichen Gebieten angekündigt, deren Ergebnisse im nächsten Frühjahr vorgestellt werden. "
    "Die Wasserversorgung gilt in einigen Gebieten seit längerer Zeit als unzureichend."
]
FRENCH = [
    "Le gouvernement a annoncé hier une enquête approfondie sur la distribution de l'eau dans les "
    "régions rurales, dont les résultats seront peut-être présentés au printemps prochain. La "
    "distribution est considérée comme insuffisante depuis longtemps."
]
CHINESE = [
    "今天北京的天气非常好，我们一家人吃过早饭以后就去公园散步，在湖边看见了许多从南方飞来的水鸟。孩子们"
    "高兴得又跑又跳，老人们坐在树下聊天，谁也不愿意早早地回家去。",
    "明天可能会下一场大雨，所以大家决定把原来的计划推迟到下个星期，等天气转好以后再出发去山里看红叶。",
]


def wrap(paragraphs, width=72, **options):
    return "\n\n".join(textwrap.fill(text, width, **options) for text in paragraphs) + "\n"


def wrap_chinese(paragraphs, characters=36):
    return "\n\n".join(
        "\n".join(text[i : i + characters] for i in range(0, len(text), characters))
        for text in paragraphs
    )


def joined(text, **options):
    wrapping = recognise_wrapping(text)
    assert wrapping is not None
    return wrapping.paragraphs(text.split("\n"))


def documents(path, **options):
    """The sentences of a file's documents, as a build keeps them."""
    inputs = Inputs([str(path)], ReadingOptions(**options))
    reader = SentenceReader(SentenceRules(), strict=False)
    return [document for work in inputs.work() for document in reader(work).documents]


@pytest.mark.parametrize("width", [45, 60, 72, 80, 100])
def test_paragraphs_come_back_from_any_width(width):
    assert joined(wrap(PROSE, width)) == PROSE


@pytest.mark.parametrize("characters", [20, 36, 40])
def test_chinese_lines_are_joined_without_a_space(characters):
    text = wrap_chinese(CHINESE * 3, characters)
    assert joined(text) == CHINESE * 3


def test_indentation_is_left_out_inside_paragraphs():
    text = wrap(PROSE, initial_indent="    ", subsequent_indent="    ")
    assert [piece.strip() for piece in joined(text)] == PROSE


def test_an_indented_first_line_begins_a_paragraph():
    text = wrap(PROSE, initial_indent="   ").replace("\n\n", "\n")
    assert [piece.strip() for piece in joined(text)] == PROSE


@pytest.mark.parametrize("bullet", ["* ", "- ", "• ", "1. ", "(a) ", "[12] "])
def test_items_of_a_list_stay_apart(bullet):
    hanging = " " * len(bullet)
    items = wrap(PROSE, initial_indent=bullet, subsequent_indent=hanging).replace("\n\n", "\n")
    assert joined(wrap(PROSE) + "\n" + items) == PROSE + [bullet + text for text in PROSE]


def test_definitions_of_a_manual_page_stay_with_their_options():
    options = wrap(PROSE[:2], initial_indent="       -q     ", subsequent_indent=" " * 14)
    assert [piece.split("     ")[-1] for piece in joined(wrap(PROSE) + "\n" + options)][3:] == (
        PROSE[:2]
    )


@pytest.mark.parametrize("marks", [["> "], [">"], ["> > "], [">> ", "> > "]])
def test_quotes_of_mails_are_joined_without_their_marks(marks):
    lines = textwrap.wrap(PROSE[0], 72)
    quoted = "\n".join(marks[i % len(marks)] + line for i, line in enumerate(lines))
    text = f"{wrap(PROSE)}\n{quoted}\nNo answer.\n"
    assert joined(text)[3:] == [PROSE[0], "No answer."]


@pytest.mark.parametrize("gap", ["", "\n", "\n\n"])
def test_a_page_that_begins_inside_a_sentence_does_not_cut_it(gap):
    lines = textwrap.wrap(PROSE[0], 72)
    number = next(i for i, line in enumerate(lines) if i and line[0].islower())
    lines[number] = f"{gap}\f{lines[number]}"
    assert joined("\n".join(lines) + f"\n\n\f{wrap(PROSE)}") == [
        PROSE[0],
        f"\f{PROSE[0]}",
        *PROSE[1:],
    ]


@pytest.mark.parametrize("prefix", ["# ", "// ", ";; ", "% "])
def test_marks_of_comments_do_not_come_into_sentences(prefix):
    lines = [prefix + line for text in PROSE for line in textwrap.wrap(text, 72)]
    assert recognise_wrapping("\n".join(lines)) is None
    assert Wrapping(72).paragraphs(lines) == lines


def test_lines_with_their_numbers_are_kept():
    lines = [line for text in PROSE for line in textwrap.wrap(text, 72)]
    assert recognise_wrapping("\n".join(f"{n} {line}" for n, line in enumerate(lines))) is None


def test_a_long_paragraph_is_joined_in_one_go():
    words = [f"word{number:06}" for number in range(100_000)]
    lines = [" ".join(words[i : i + 10]) for i in range(0, len(words), 10)]
    assert Wrapping(109).paragraphs(lines) == [" ".join(words)]


VERSE = "Tyger Tyger, burning bright,\nIn the forests of the night;\nWhat immortal hand or eye,"
TABLE = (
    "name        size    date of change\nalpha       12      yesterday\nbeta        9       today"
)
CODE = "for item in items:\n    if item.size > limit:\n        total += item.size\nreturn total"


@pytest.mark.parametrize("lines", [VERSE, TABLE, CODE, "A heading\n========="])
def test_what_was_not_wrapped_in_wrapped_text_keeps_its_lines(lines):
    assert joined(wrap(PROSE) + "\n" + lines)[3:] == lines.split("\n")


def test_hyphenated_words_are_put_together():
    parted = GERMAN[0].replace("Wasserversorgung in", "Wasserversor- gung in")
    width = next(n for n in range(50, 90) if "versor-\n" in textwrap.fill(parted, n))
    assert joined(wrap([*GERMAN * 3, parted], width)) == GERMAN * 4


def test_french_compounds_keep_their_hyphen():
    known = wrap(FRENCH)
    broken = "Les résultats seront présentés au printemps, et ils seront peut-\nêtre publiés.\n"
    assert joined(f"{known}\n{known}\n{broken}")[-1].endswith("ils seront peut-être publiés.")


@pytest.mark.parametrize(
    ("left", "right", "whole"),
    [
        ("Vor-", "und Nachteile", "Vor- und Nachteile"),
        ("E-Mail-", "Adresse", "E-Mail-Adresse"),
        ("state-of-", "the-art", "state-of-the-art"),
        ("trans\u00ad", "parent", "transparent"),
        ("from 1990-", "1995 on", "from 1990-1995 on"),
        ("he said --", "and left", "he said -- and left"),
        ("infor-", "mation", "information"),
    ],
)
def test_hyphens_at_the_end_of_a_line(left, right, whole):
    wrapping = Wrapping(len(left) + 2, True, frozenset(["information"]), frozenset())
    assert wrapping.paragraphs([left, right]) == [whole]


SONG = "The river runs beneath the bridge,\nThe moon is on the water,\nAnd nobody has crossed it.\n"
WORDS = "\n".join(PROSE).lower().replace(".", "").replace(",", "").replace(";", "").split()
CHARACTERS = "".join(CHINESE).replace("，", "").replace("。", "")
UTTERANCES = [" ".join(WORDS[i : i + 12]) for i in range(len(WORDS) - 12)]
HEADLINES = [CHARACTERS[i : i + 20 + i * i % 4] for i in range(len(CHARACTERS) - 23)]
PROGRAM = (
    "def total_of(items, limit, default=None):  # Sums up whatever is no more than this.\n"
    "    # Items without a size count as the default does, which the caller has to give.\n"
    "    sizes = [item.size if item.size is not None else default for item in items if item]\n"
    "    return sum(size for size in sizes if size <= limit)  # And nothing else. See above.\n\n"
)
NOT_WRAPPED = {
    "utterances": "\n".join(UTTERANCES) + "\n",
    "titles": "".join(f"{text}\n" for text in UTTERANCES if 60 <= len(text) <= 72),
    "lower-case verse": "\n".join(" ".join(WORDS[i : i + 7]) for i in range(0, 120, 7)) + "\n",
    "chinese headlines": "\n".join(HEADLINES) + "\n",
    "chinese headlines with marks": "\n".join(f"{h[:9]}！{h[9:]}" for h in HEADLINES) + "\n",
    "program": PROGRAM * 30,
    "paragraphs": "\n".join(PROSE) + "\n",
    "paragraphs with empty lines": "\n\n".join(PROSE) + "\n",
    "sentences": "".join(f"{s}.\n" for text in PROSE for s in text.split(". ")),
    "beginnings": "".join(
        f"{' '.join(text.split()[:n])}\n" for n in range(3, 11) for text in PROSE
    ),
    "verse": SONG * 20,
    "code": f"{CODE}\n" * 20,
    "chinese paragraphs": "\n".join(CHINESE) + "\n",
    "chinese poem": "床前明月光，\n疑是地上霜。\n举头望明月，\n低头思故乡。\n" * 9,
    "table": f"{TABLE}\n" * 20,
}


TECHNICAL = (
    'The operators "<", ">", "==", ">=", "<=", and "!=" compare the values of two objects. The '
    'objects do not need to have the same type. Note that "x < y and y <= z" is what "x < y <= z" '
    'stands for, except that "y" is evaluated only once (but in both cases "z" is not evaluated '
    'at all when "x < y" is found to be false). See "__eq__()" and "__lt__()" for what is called.'
)


def test_technical_prose_full_of_marks_is_recognised():
    assert joined(wrap([TECHNICAL] * 3)) == [TECHNICAL] * 3


@pytest.mark.parametrize("kind", NOT_WRAPPED)
def test_what_is_not_wrapped_is_not_taken_for_it(kind):
    assert recognise_wrapping(NOT_WRAPPED[kind] * 3) is None


@pytest.mark.parametrize("kind", NOT_WRAPPED)
def test_text_that_is_not_wrapped_is_read_as_it_always_was(tmp_path, kind):
    path = tmp_path / "x.txt"
    path.write_text(NOT_WRAPPED[kind] * 3)
    assert documents(path) == documents(path, wrapped="keep")


def test_a_wrapped_file_is_one_document_of_whole_sentences(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text(wrap(PROSE))
    (document,) = documents(path)
    assert " ".join(document) == " ".join(PROSE)
    assert len(documents(path, wrapped="keep")) == 3


def test_three_empty_lines_end_a_document(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("\n\n\n\n".join(wrap([text] * 2) for text in PROSE))
    assert len(documents(path)) == 3
    assert len(documents(path, input_format="text_file")) == 1


def test_joining_can_be_asked_for(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text(wrap(PROSE[:1], 90))
    assert len(documents(path)[0]) > 2
    assert " ".join(documents(path, wrapped="join")[0]) == PROSE[0]


@pytest.mark.parametrize("size", [2000, 4096, 5000, 1 << 20])
def test_blocks_of_any_size_give_the_same_documents(tmp_path, size):
    path = tmp_path / "x.txt"
    text = "\n\n\n\n".join(wrap(PROSE * n) + f"\n{VERSE}\n" for n in (1, 5, 2, 9, 1))
    path.write_text(text)
    wrapping = recognise_wrapping(text)
    whole, _ = read(WrappedSource(wrapping=wrapping), path)
    parts, _ = read(WrappedSource(size, longest_sentence=64, wrapping=wrapping), path)
    assert len(whole) == 5
    assert parts == whole


def test_a_paragraph_longer_than_a_block_loses_no_sentence(tmp_path):
    path = tmp_path / "x.txt"
    sentences = [f"Sentence {3**n} of a paragraph that goes on and on." for n in range(64)] * 320
    path.write_text(textwrap.fill(" ".join(sentences), 72))
    (first, *rest) = documents(path)
    assert rest and first + [text for document in rest for text in document] == sentences


@pytest.mark.parametrize("kind", ["jsonl", "json", "tar"])
def test_wrapped_text_is_joined_inside_records_and_members(tmp_path, kind):
    path = tmp_path / "x"
    text = wrap(PROSE)
    if kind == "tar":
        with tarfile.open(path, "w") as archive:
            info = tarfile.TarInfo("a.txt")
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text.encode()))
    else:
        record = {"text": text}
        path.write_text(json.dumps(record if kind == "jsonl" else [record]) + "\n")
    (document,) = documents(path)
    assert " ".join(document) == " ".join(PROSE)


@pytest.mark.parametrize("kind", ["jsonl", "json"])
def test_long_wrapped_records_are_cut_between_paragraphs(tmp_path, kind):
    path = tmp_path / "x"
    record = {"text": wrap(PROSE * 2000)}
    path.write_text(json.dumps(record if kind == "jsonl" else [record]) + "\n")
    inputs = Inputs([str(path)], ReadingOptions())
    blocks = [work.block for work in inputs.work()]
    lines = [
        line
        for block in blocks
        for document in inputs.sources[str(path)].documents(block, None)
        for line in document.lines
    ]
    assert len(blocks) > 1
    assert lines == PROSE * 2000


def test_lines_of_a_stream_with_carriage_returns_are_joined_too(tmp_path):
    path = tmp_path / "x.txt"
    path.write_bytes(wrap(PROSE).replace("\n", "\r\n").encode())
    with InputStream(str(path)) as stream:
        assert b"\r\n" in stream.peek(100)
    (document,) = documents(path)
    assert " ".join(document) == " ".join(PROSE)

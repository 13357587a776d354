"""Reads whole files through a source, as tests want to see them."""

from minimoe_dist.corpus.blocks import Document, Problems
from minimoe_dist.corpus.reading import BlockOfSource, SentenceReader
from minimoe_dist.corpus.sentences import SentenceRules
from minimoe_dist.corpus.streams import InputStream

ALL_SENTENCES = SentenceRules(minimum_words=1, minimum_characters=1)


def read(source, path, strict=False, blocks=None):
    """The documents of a file (or of its blocks), parts put together, and the problems found."""
    problems = Problems(strict=strict)
    whole = []
    for block in blocks or source.blocks(InputStream(str(path))):
        if block.damage:
            problems.note(block.damage.kind, block.path, block.first_line, block.damage.message)
        for document in source.documents(block, problems):
            if document.continues:
                whole[-1] = Document(whole[-1].title, whole[-1].lines + document.lines)
            else:
                whole.append(document)
    return whole, problems


def sentences(source, path, rules=ALL_SENTENCES):
    """The sentences of each document of a file."""
    reader = SentenceReader(rules, strict=False)
    whole = []
    for block in source.blocks(InputStream(str(path))):
        found = reader(BlockOfSource(source, block))
        for number, document in enumerate(found.documents):
            if number == 0 and found.continues:
                whole[-1] += document
            else:
                whole.append(document)
    return whole

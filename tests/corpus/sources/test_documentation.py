"""The prose that every Python carries."""

import itertools

from minimoe_dist.corpus.sources import python_documentation


def test_python_documentation_is_prose_in_a_fixed_order():
    documents = list(itertools.islice(python_documentation(), 60))
    assert documents == list(itertools.islice(python_documentation(), 60))
    paragraphs = [line for document in documents for line in document.lines]
    assert len(paragraphs) > 300
    assert not any(">>>" in line or "\n" in line or "``" in line for line in paragraphs)

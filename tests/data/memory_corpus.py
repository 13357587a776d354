"""A corpus in memory, for tests of what reads corpora."""

import numpy as np


class MemoryCorpus:
    """Documents given by their sentences' lengths; token t of the corpus has the id t."""

    prefix = "memory"

    def __init__(self, documents: list[list[int]]) -> None:
        self.sentence_lengths = np.array([n for d in documents for n in d], dtype=np.int32)
        self.document_starts = np.cumsum([0] + [len(d) for d in documents], dtype=np.int64)
        self._starts = np.concatenate([[0], np.cumsum(self.sentence_lengths, dtype=np.int64)])
        self.num_tokens = int(self._starts[-1])
        self.ids = np.arange(self.num_tokens, dtype=np.int64)
        self.sentence_pointers = self._starts[:-1] * self.ids.itemsize

    def tokens(self, first: int, last: int) -> np.ndarray:
        return self.ids[self._starts[first] : self._starts[last]]

    def document_of_token(self, token: int) -> int:
        sentence = int(np.searchsorted(self._starts, token, side="right")) - 1
        return int(np.searchsorted(self.document_starts, sentence, side="right")) - 1

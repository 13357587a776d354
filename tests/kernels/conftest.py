"""One process that interprets kernels, for all tests of a worker."""

from collections.abc import Iterator

import pytest

from tests.kernels.processes import Run, interpreting

pytest.importorskip("triton")


@pytest.fixture(scope="session")
def interpreted() -> Iterator[Run]:
    with interpreting() as run:
        yield run

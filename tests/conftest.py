"""What all tests share."""

import logging

import pytest
import torch


@pytest.fixture(autouse=True)
def seeded() -> None:
    """What a test draws does not depend on the tests that its process ran before."""
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def silent() -> None:
    """A test does not log because a command that ran before it in its process began to."""
    package = logging.getLogger("minimoe_dist")
    package.handlers.clear()
    package.setLevel(logging.NOTSET)
    package.propagate = True


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of tests/fuzz."""
    parser.addoption("--fuzz_seconds", type=float, default=8.0, help="of all formats together")
    parser.addoption("--fuzz_seed", type=int, default=0, help="other seeds damage otherwise")
    parser.addoption("--fuzz_report", default=None, help="file for the counts, as JSON")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begins with the files whose tests start runs: the longest must not come last, alone."""
    first = ("commands", "by_transformers")
    items.sort(
        key=lambda item: (item.path.stem != "test_tutorial", item.path.parent.name not in first)
    )

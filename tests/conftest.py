"""What all tests share."""

import pytest
import torch


@pytest.fixture(autouse=True)
def seeded() -> None:
    """What a test draws does not depend on the tests that its process ran before."""
    torch.manual_seed(0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begins with the files whose tests start runs: the longest must not come last, alone."""
    items.sort(key=lambda item: item.path.parent.name != "commands")

"""What all tests share."""

import pytest
import torch


@pytest.fixture(autouse=True)
def seeded() -> None:
    """What a test draws does not depend on the tests that its process ran before."""
    torch.manual_seed(0)

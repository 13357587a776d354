"""Allocations that fail end in a line that says what to lower."""

import pytest
import torch

from minimoe_dist.errors import UserError
from minimoe_dist.train.out_of_memory import naming_batch


def test_a_tensor_that_no_memory_holds_is_told_with_the_batch() -> None:
    with (
        pytest.raises(UserError, match=r"out of memory for 131072.00 GiB more with a b: c$"),
        naming_batch("a b", "c"),
    ):
        torch.empty(1 << 45)


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), ValueError("x")])
def test_other_errors_stay_as_they_are(error) -> None:
    with pytest.raises(type(error)) as caught, naming_batch("a", "b"):
        raise error
    assert caught.value is error


@pytest.mark.gpu
def test_a_gpu_that_is_full_is_told_with_what_it_holds() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU")
    with (
        pytest.raises(UserError, match=r"out of memory on cuda:0 for .* GiB more, of whose"),
        naming_batch("a", "b"),
    ):
        torch.empty(1 << 45, device="cuda")

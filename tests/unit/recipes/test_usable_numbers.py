"""Numbers that a saved adapter may have."""

import pytest
import torch
from safetensors.torch import save_file

from lorakit.recipes.usable_numbers import has_unusable_numbers, has_usable_numbers


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_usable_numbers_are_finite_and_below_the_bound(value):
    assert has_usable_numbers(torch.tensor([1e3, -1e3])) and has_usable_numbers(torch.empty(0))
    assert has_usable_numbers(torch.tensor([1 << 40]))
    for dtype in (torch.float32, torch.bfloat16):
        assert not has_usable_numbers(torch.tensor([0.0, value], dtype=dtype))


def test_one_unusable_tensor_makes_a_file_unusable(tmp_path):
    path = tmp_path / "adapter.safetensors"
    save_file({"a": torch.ones(2)}, path)
    assert not has_unusable_numbers(path)
    save_file({"a": torch.ones(2), "b": torch.tensor([0.0, float("nan")])}, path)
    assert has_unusable_numbers(path)

"""Which activations the compiled products read; what they compute is in test_skinny.py."""

import pytest
import torch

from lorakit.ops.native import cpu_kernels


@pytest.mark.parametrize(
    ("x", "taken"),
    [
        (torch.ones(2, 3), True),
        (torch.ones(2, 3, dtype=torch.bfloat16), True),
        (torch.nn.Parameter(torch.ones(2, 3)), True),
        (torch.ones(6, 3)[::2], True),
        (torch.ones(2, 6)[:, :3], True),
        (torch.ones(3, 2).t(), False),
        (torch.ones(2, 6)[:, ::2], False),
        (torch.ones(1).expand(2, 3), False),
        (torch.ones(()), False),
        (torch.ones(2, 3, dtype=torch.float64), False),
        (torch.ones(2, 3, dtype=torch.float16), False),
        (torch.ones(2, 3, device="meta"), False),
        (torch.ones(2, 3).as_subclass(type("Wrapped", (torch.Tensor,), {})), False),
    ],
    ids=str,
)
def test_which_activations_they_read(x, taken):
    assert cpu_kernels.takes(x) is taken

"""What the compiled products read; what they compute is in test_skinny.py."""

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


def test_groups_for_backward_read_float32_and_leave_those_of_forward_alone():
    A, B = torch.ones(2, 3, dtype=torch.bfloat16), torch.ones(4, 3)
    gradient = torch.zeros(4, 3)
    groups = cpu_kernels.Groups([cpu_kernels.Group(0, 5, A, 2), cpu_kernels.Group(5, 7, B, 4, 0.5)])
    before = bytes(groups.array)
    found = groups.for_backward([0, gradient.data_ptr()])
    first, second = found.array
    assert bytes(groups.array) == before
    assert (first.begin, first.end, first.thin_is_half, first.gradient) == (0, 5, 0, None)
    assert first.thin == found.tensors[0][0].data_ptr() != A.data_ptr()
    assert found.tensors[0][0].dtype == torch.float32
    assert (second.thin, second.gradient) == (B.data_ptr(), gradient.data_ptr())
    assert second.scale == 0.5

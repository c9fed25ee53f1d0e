import pytest
import torch


@pytest.fixture
def two_threads():
    """Let torch compute with two threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)

"""What is drawn for a run while it waits is what it draws alone."""

import torch

from lorakit.ops import draw_seed
from lorakit.training.together.process_state import ProcessState
from lorakit.training.together.random_state import RandomState


def test_seeds_and_other_numbers_follow_each_other_as_alone():
    torch.manual_seed(5)
    state = ProcessState.current()
    alone = [draw_seed().item(), torch.rand(3).tolist(), draw_seed().item(), torch.rand(()).item()]
    torch.manual_seed(9)
    random = RandomState(state)
    found = [random.draw_seed().item()]
    with random.drawing():
        found.append(torch.rand(3).tolist())
    found.append(random.draw_seed().item())
    random.write_back()
    state.restore()
    found.append(torch.rand(()).item())
    assert found == alone

"""AdamW with its state in a mapped file: torch's results, in memory that can leave."""

import copy
from pathlib import Path

import pytest
import torch

from lorakit.training.trainers.memory_mapped_adamw import MemoryMappedAdamW


def parameters():
    generator = torch.Generator().manual_seed(0)
    return [
        torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in ((5, 3), (), (7,))
    ]


def take_steps(optimizer, parameters, steps, seed=1):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for parameter in parameters:
            parameter.grad = torch.randn(tuple(parameter.shape), generator=generator)
        optimizer.step()


OPTIONS = {"lr": 0.1, "betas": (0.8, 0.9), "eps": 1e-6, "weight_decay": 0.05}


def test_results_are_torch_s_to_the_bit(tmp_path):
    mapped_parameters, others = parameters(), parameters()
    take_steps(
        MemoryMappedAdamW(mapped_parameters, directory=tmp_path, **OPTIONS), mapped_parameters, 4
    )
    take_steps(torch.optim.AdamW(others, **OPTIONS), others, 4)
    for one, other in zip(mapped_parameters, others, strict=True):
        assert torch.equal(one, other)


def test_state_lies_in_one_mapped_file_that_nobody_has_to_remove(tmp_path):
    mapped_parameters = parameters()
    optimizer = MemoryMappedAdamW(mapped_parameters, directory=tmp_path / "run", **OPTIONS)
    take_steps(optimizer, mapped_parameters, 1)
    assert list((tmp_path / "run").iterdir()) == []
    states = [
        optimizer.state[p][name] for p in mapped_parameters for name in ("exp_avg", "exp_avg_sq")
    ]
    assert len({state.untyped_storage().data_ptr() for state in states}) == 1
    lines = Path("/proc/self/maps").read_text().splitlines()
    mapped = [line for line in lines if f"{tmp_path / 'run'}/.optimizer-state-" in line]
    assert len(mapped) == 1 and mapped[0].endswith("(deleted)")
    low, high = (int(part, 16) for part in mapped[0].split()[0].split("-"))
    assert " rw-s " in mapped[0] and all(low <= state.data_ptr() < high for state in states)


def test_saved_state_goes_on_where_it_was(tmp_path):
    mapped_parameters, others = parameters(), parameters()
    first = MemoryMappedAdamW(mapped_parameters, directory=tmp_path, **OPTIONS)
    take_steps(first, mapped_parameters, 2)
    torch.save(first.state_dict(), tmp_path / "optimizer.pt")
    again = [torch.nn.Parameter(p.detach().clone()) for p in mapped_parameters]
    second = MemoryMappedAdamW(again, directory=tmp_path, **OPTIONS)
    storage = second.state[again[0]]["exp_avg"].untyped_storage().data_ptr()
    second.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    assert second.state[again[0]]["exp_avg"].untyped_storage().data_ptr() == storage
    take_steps(second, again, 2, seed=2)
    third = torch.optim.AdamW(others, **OPTIONS)
    take_steps(third, others, 2)
    take_steps(third, others, 2, seed=2)
    for one, other in zip(again, others, strict=True):
        assert torch.equal(one, other)


def test_a_state_of_torch_s_own_can_be_taken_over(tmp_path):
    mapped_parameters, others = parameters(), parameters()
    plain = torch.optim.AdamW(others, **OPTIONS)
    take_steps(plain, others, 2)
    mapped = MemoryMappedAdamW(mapped_parameters, directory=tmp_path, **OPTIONS)
    mapped.load_state_dict(copy.deepcopy(plain.state_dict()))
    assert torch.equal(
        mapped.state[mapped_parameters[0]]["exp_avg_sq"], plain.state[others[0]]["exp_avg_sq"]
    )


def test_parameters_cannot_come_later_and_none_is_fine(tmp_path):
    optimizer = MemoryMappedAdamW(parameters(), directory=tmp_path)
    with pytest.raises(ValueError, match="has a fixed size"):
        optimizer.add_param_group({"params": parameters()})
    MemoryMappedAdamW([torch.nn.Parameter(torch.zeros(0))], directory=tmp_path).step()

"""A new form of the factors needs its class and the initialization that chooses it."""

import copy

import pytest
import torch
from torch import nn

import lorakit
from lorakit import Adapter, LoraConfig, add_adapter, count_parameters
from lorakit.adapters.on_model.hotswap import hotswap_adapter
from lorakit.initialization import INITIALIZATIONS
from lorakit.initialization.random_factors import Gaussian
from lorakit.layers.updates.low_rank_update import LowRankUpdate
from tolerances import TOLERANCE, largest_error


class BoundedUpdate(LowRankUpdate):
    """The update s tanh(lora_B) lora_A, which files hold as an ordinary one."""

    keeps_saved_factors = False

    def operand_factors(self):
        return self.lora_A, self.lora_B.tanh()

    def load_factors_(self, A, B):
        self.set_factors_(A, B.atanh())


class Bounded(Gaussian):
    """Factors of `gaussian`, for a bounded update."""

    def update_class(self, adapted_class, *, is_fresh):
        return BoundedUpdate

    def write_(self, update, A, B):
        update.load_factors_(A, B)


@pytest.fixture(autouse=True)
def bounded(monkeypatch):
    monkeypatch.setitem(INITIALIZATIONS, "gaussian", Bounded())


X = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))


def plain():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))


def config(**changes):
    settings = {"r": 2, "lora_alpha": 4, "target_modules": ["0", "2"]}
    return LoraConfig(**settings | {"init_lora_weights": "gaussian"} | changes)


def trained(**changes):
    """Return a model with such updates after two steps of training."""
    model = plain()
    add_adapter(model, config(**changes))
    assert torch.equal(model(X), plain()(X))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        model(X).square().mean().backward()
        optimizer.step()
    return model.eval()


def expected(model):
    def linear(layer, x):
        update = layer.updates["default"]
        return layer.plain_class.forward(layer, x) + update.scaling * (
            x @ update.lora_A.t() @ update.lora_B.tanh().t()
        )

    return linear(model[2], linear(model[0], X).tanh())


def test_it_acts_with_gradients_without_and_by_row():
    model = trained()
    assert (model[0].updates["default"].lora_B != 0).all()
    wanted, base = expected(model), plain()(X)
    assert largest_error(model(X), wanted) <= TOLERANCE[torch.float32]
    with torch.no_grad():
        for _ in range(2):
            assert largest_error(model(X), wanted) <= TOLERANCE[torch.float32]
        with lorakit.adapter_rows(model, ["default", None, "default", None, None]):
            mixed = model(X)
    is_adapted = torch.tensor([True, False, True, False, False])[:, None]
    rows = torch.where(is_adapted, wanted, base)
    assert largest_error(mixed, rows) <= TOLERANCE[torch.float32]
    assert count_parameters(model).lora == 2 * (6 + 8) + 2 * (8 + 4)


@pytest.mark.parametrize("changes", [{}, {"use_dora": True}, {"bias": "lora_only"}])
def test_it_goes_together_with_variants_and_files_hold_an_ordinary_update(tmp_path, changes):
    model = trained(**changes)
    lorakit.save_adapter(model, tmp_path)
    other = plain()
    lorakit.load_adapter(other, tmp_path)
    assert type(other[0].updates["default"]) is LowRankUpdate
    assert largest_error(other.eval()(X), model(X)) <= TOLERANCE[torch.float32]
    swapped = plain()
    add_adapter(swapped, config(**changes))
    hotswap_adapter(swapped, Adapter.load(tmp_path))
    assert largest_error(swapped.eval()(X), model(X)) <= TOLERANCE[torch.float32]


@pytest.mark.parametrize("changes", [{}, {"use_dora": True}])
def test_it_is_merged_and_comes_off_again(changes):
    model = trained(**changes)
    before, outputs = copy.deepcopy(model.state_dict()), model(X)
    lorakit.merge_adapters(model)
    assert largest_error(model(X), outputs) <= TOLERANCE[torch.float32]
    lorakit.unmerge_adapters(model)
    assert all(torch.equal(model.state_dict()[name], one) for name, one in before.items())
    assert torch.equal(model(X), outputs)


def test_the_adapter_as_a_value_is_an_ordinary_one():
    model = trained()
    A, B = Adapter.from_model(model).factors["0"]
    update = model[0].updates["default"]
    assert torch.equal(A, update.lora_A) and torch.equal(B, update.lora_B.tanh())

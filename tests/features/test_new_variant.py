"""A new variant needs its setting, its class and a line in the table; nothing else knows it."""

import re
from pathlib import Path

import pytest
import torch
from pydantic.fields import FieldInfo
from torch import nn

import lorakit
from lorakit import Adapter, LoraConfig, add_adapter, count_parameters
from lorakit.adapters.on_model.hotswap import hotswap_adapter
from lorakit.adapters.operations.combine import combine
from lorakit.errors import AdapterFileError, AdapterMismatchError, TargetError
from lorakit.injection.change_ranks import change_ranks
from lorakit.layers import LoraLinear
from lorakit.layers.variants.table import VARIANTS
from lorakit.layers.variants.variant import Variant
from tolerances import TOLERANCE, largest_error


class Shift(Variant):
    """Adds t to a linear layer's outputs, and doubles the update: h = x (W0 + 2 s B A)ᵀ + t."""

    method = "shift"
    setting = "use_shift"
    name = "shift"
    file_key = "lora_shift"
    effect = "shifts the outputs (use_shift)"

    @classmethod
    def obstacle(cls, kind):
        return None if issubclass(kind, LoraLinear) else "has no outputs to shift"

    @classmethod
    def initial(cls, layer, update):
        return torch.full((layer.out_features,), 0.5)

    @classmethod
    def term(cls, term, tensor, layer, update):
        return term._replace(scaling=2 * term.scaling)

    @classmethod
    def bias(cls, bias, base_bias, tensor):
        return tensor if bias is None else bias + tensor

    @classmethod
    def change(cls, delta, W0, tensor):
        return 2 * delta


@pytest.fixture(autouse=True)
def shift():
    """List the variant, and give the configuration its setting as a line in the class would."""
    fields = LoraConfig.__pydantic_fields__
    fields["use_shift"] = FieldInfo(annotation=bool, default=False)
    LoraConfig.model_rebuild(force=True)
    VARIANTS.append(Shift)
    yield
    VARIANTS.remove(Shift)
    del fields["use_shift"]
    LoraConfig.model_rebuild(force=True)


def plain():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8, bias=False), nn.Tanh(), nn.Linear(8, 4))


X = torch.randn(5, 6, generator=torch.Generator().manual_seed(1))


def config(**changes):
    settings = {"r": 2, "lora_alpha": 4, "target_modules": ["0", "2"], "use_shift": True}
    return LoraConfig(**settings | changes)


def trained():
    """Return a model with the variant after a step of training."""
    model = plain()
    add_adapter(model, config())
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        model(X).square().mean().backward()
        optimizer.step()
    return model.eval()


def expected(model):
    h = X
    for layer in (model[0], None, model[2]):
        if layer is None:
            h = h.tanh()
            continue
        update = layer.updates["default"]
        W = layer.weight + 2 * update.scaling * update.lora_B @ update.lora_A
        bias = 0 if layer.bias is None else layer.bias
        h = h @ W.t() + bias + update.shift
    return h


def test_it_acts_and_its_tensor_is_trained_and_counted():
    model = trained()
    for layer in (model[0], model[2]):
        assert (layer.updates["default"].shift != 0.5).all()
    assert largest_error(model(X), expected(model)) <= TOLERANCE[torch.float32]
    assert count_parameters(model).lora == 2 * (6 + 8) + 8 + 2 * (8 + 4) + 4
    assert count_parameters(model).replaced == 0
    injection = add_adapter(plain(), config())
    assert injection.lora_parameters == count_parameters(model).lora


def test_decoding_and_rows_have_it():
    model = trained()
    with torch.no_grad():
        whole = model(X)
        assert largest_error(whole, expected(model)) <= TOLERANCE[torch.float32]
        with lorakit.adapter_rows(model, ["default", None, "default", None, None]):
            mixed = model(X)
        with lorakit.disable_adapters(model):
            base = model(X)
    is_adapted = torch.tensor([True, False, True, False, False])[:, None]
    assert largest_error(mixed, torch.where(is_adapted, whole, base)) <= TOLERANCE[torch.float32]


def test_it_is_saved_and_loaded_under_its_key(tmp_path):
    model = trained()
    lorakit.save_adapter(model, tmp_path)
    adapter = Adapter.load(tmp_path)
    assert adapter.config.use_shift
    assert adapter.companions.keys() == {"0.shift", "2.shift"}
    assert "base_model.model.0.lora_shift" in lorakit.adapters.adapter_state_dict(model)
    other = plain()
    lorakit.load_adapter(other, tmp_path)
    assert torch.equal(other.eval()(X), model(X))


def test_it_is_merged_and_comes_off_again():
    model = trained()
    before = {name: p.clone() for name, p in model.state_dict().items()}
    outputs = model(X)
    lorakit.merge_adapters(model)
    assert largest_error(model(X), outputs) <= TOLERANCE[torch.float32]
    lorakit.unmerge_adapters(model)
    after = model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[n], before[n]) for n in before)
    assert torch.equal(model(X), outputs)
    merged = lorakit.merge_and_unload(model)
    assert type(merged[0]) is nn.Linear and merged[0].bias is not None
    assert largest_error(merged(X), outputs) <= TOLERANCE[torch.float32]


def test_it_is_swapped_and_stays_when_ranks_change():
    model, new = plain(), trained()
    add_adapter(model, config(r=1), max_rank=2)
    hotswap_adapter(model, Adapter.from_model(new))
    assert largest_error(model.eval()(X), new(X)) <= TOLERANCE[torch.float32]
    plain_one = plain()
    add_adapter(plain_one, config(use_shift=False))
    with pytest.raises(AdapterMismatchError, match=r"it has no shift \(use_shift\) at 0"):
        hotswap_adapter(new, Adapter.from_model(plain_one))
    shift = new[0].updates["default"].shift
    change_ranks(new, "default", config(r=4), {"0": 4})
    assert new[0].updates["default"].shift is shift and new[0].updates["default"].r == 4


def test_what_it_does_not_support_is_an_error():
    adapter = Adapter.from_model(trained())
    with pytest.raises(AdapterFileError, match="got use_shift=True"):
        combine({"a": adapter}, {"a": 1.0})
    with pytest.raises(AdapterMismatchError, match="Shifts of an adapter with use_shift=True: got"):
        Adapter(adapter.config, adapter.factors)
    embedding = nn.Sequential(nn.Embedding(5, 6))
    with pytest.raises(TargetError, match=r"use_shift=True: Embedding has no outputs to shift"):
        add_adapter(embedding, config(target_modules=["0"]))


def test_no_file_but_a_few_names_a_variant():
    """A branch on a variant outside of its class is a seam that was missed."""
    source = Path(lorakit.__file__).parent
    named = re.compile(r"dora|magnitude(?!_prune)", re.IGNORECASE)
    files = {
        str(path.relative_to(source))
        for path in source.rglob("*.py")
        if named.search(path.read_text(encoding="utf-8"))
    }
    assert files == {
        "adapters/adapter.py",  # the public name `magnitudes`
        "config/lora_config.py",  # the setting
        "layers/variants/dora.py",
        "layers/variants/table.py",
        "ops/reference.py",  # the formula of the paper, which tests compare with
    }

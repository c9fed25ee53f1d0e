import pytest
import torch
from torch import nn

from lorakit import LoraConfig
from lorakit.errors import TargetError
from lorakit.initialization import INITIALIZATIONS, FreshUpdate, Initialization, initialization_of
from lorakit.injection.selection.sites import Site
from lorakit.layers import LowRankUpdate, OffsetUpdate
from lorakit.layers.kinds.embedding import LoraEmbedding
from lorakit.layers.kinds.linear import LoraLinear

COMPUTED = [value for value, one in INITIALIZATIONS.items() if one.source is not None]


def site(module=None, adapted_class=LoraLinear, r=2):
    return Site("up", module or nn.Linear(6, 8), adapted_class, r, 0.5)


@pytest.mark.parametrize("value", COMPUTED)
def test_computed_factors_need_linear_layers(value):
    config = LoraConfig(init_lora_weights=value)
    layer = site(nn.Embedding(8, 6), LoraEmbedding)
    with pytest.raises(TargetError, match=rf"up with init_lora_weights='{value}'.*linear layers"):
        initialization_of(value).check([layer], config)


@pytest.mark.parametrize("value", [True, False, "gaussian", "orthogonal"])
def test_random_factors_fit_every_layer(value):
    layer = site(nn.Embedding(8, 6), LoraEmbedding)
    initialization_of(value).check([layer], LoraConfig(init_lora_weights=value))


def test_only_fresh_updates_are_measured_from_a_gradient_s_factors():
    kinds = {
        value: [
            initialization_of(value).update_class(LoraLinear, is_fresh=is_fresh) is OffsetUpdate
            for is_fresh in (True, False)
        ]
        for value in (True, "pissa", "olora", "loftq", "eva", "lora_ga")
    }
    assert kinds == {
        True: [False, False],
        "pissa": [True, True],
        "olora": [True, True],
        "loftq": [False, False],
        "eva": [False, False],
        "lora_ga": [True, False],
    }


@pytest.mark.parametrize("value", COMPUTED)
def test_factors_have_the_shapes_of_the_update_and_are_written_to_it(value):
    initialization = initialization_of(value)
    kind = initialization.update_class(LoraLinear, is_fresh=True)
    update = kind(torch.empty(2, 6), torch.empty(8, 2), 0.5)
    matrix = torch.randn(6, 6) if initialization.source == "inputs" else torch.randn(8, 6)
    A, B = initialization.factors(FreshUpdate(update, "B", lambda: matrix))
    assert A.shape == (2, 6) and B.shape == (8, 2)
    initialization.write_(update, A, B)
    assert torch.equal(update.lora_A, A) and torch.equal(update.lora_B, B)
    assert not isinstance(update, OffsetUpdate) or not update.delta_weight().any()


def test_a_new_one_says_what_it_computes():
    class Constant(Initialization):
        def factors(self, fresh):
            return torch.ones_like(fresh.update.lora_A), torch.zeros_like(fresh.update.lora_B)

    constant, update = Constant(), LowRankUpdate(torch.empty(2, 6), torch.empty(8, 2), 0.5)
    constant.check([site()], LoraConfig())
    assert not constant.needs_data and not constant.file_problems([site()], LoraConfig())
    constant.write_(update, *constant.factors(FreshUpdate(update, "B")))
    assert update.lora_A.eq(1).all()


def test_an_update_of_another_kind_is_an_error():
    update = LowRankUpdate(torch.empty(2, 6), torch.empty(8, 2), 0.5)
    with pytest.raises(TypeError, match="is not measured from its first factors"):
        initialization_of("pissa").write_(update, torch.ones(2, 6), torch.ones(8, 2))
    with pytest.raises(TypeError, match="no matrix"):
        initialization_of("pissa").factors(FreshUpdate(update, "B"))


@pytest.mark.parametrize("value", ["pissa", "olora"])
def test_a_peft_file_computed_from_the_weight_needs_that_weight(value):
    from bitsandbytes.nn import Linear4bit

    config, initialization = LoraConfig(init_lora_weights=value), initialization_of(value)
    assert initialization.file_problems([site()], config) == []
    (problem,) = initialization.file_problems([site(), site(Linear4bit(64, 8))], config)
    assert "PEFT quantizes what it leaves of up again" in problem and repr(value) in problem

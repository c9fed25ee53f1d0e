import pytest
import torch
from torch import nn

from lorakit import LoraConfig
from lorakit.errors import QuantizationError
from lorakit.initialization import FreshUpdate, initialization_of
from lorakit.injection.selection.sites import Site
from lorakit.layers import LowRankUpdate
from lorakit.layers.kinds.linear import LoraLinear


def test_the_update_makes_up_for_an_error_of_its_rank():
    torch.manual_seed(0)
    error = torch.randn(8, 2) @ torch.randn(2, 6)
    update = LowRankUpdate(torch.empty(2, 6), torch.empty(8, 2), 0.5)
    loftq = initialization_of("loftq")
    loftq.write_(update, *loftq.factors(FreshUpdate(update, "B", lambda: error)))
    assert torch.allclose(update.delta_weight(), error, atol=1e-5)


def test_a_dense_layer_has_no_error():
    layer = Site("up", nn.Linear(6, 8), LoraLinear, 2, 0.5)
    with pytest.raises(QuantizationError, match=r"up with .*'loftq': its weight is not quantized"):
        initialization_of("loftq").check([layer], LoraConfig(init_lora_weights="loftq"))

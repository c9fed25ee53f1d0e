"""Layers whose weight is read instead of calling them are refused; others are adapted."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lorakit import Adapter, LoraConfig, add_adapter, merge_adapters
from lorakit.errors import TargetError
from tiny_models import assert_untouched, randomize_, snapshot
from tolerances import largest_error


class Mixer(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv1d(4, 4, 3)


class Calling(Mixer):
    """Calls its convolution, and reads of its weight what it is like."""

    def forward(self, x):
        return self.conv(x.to(self.conv.weight.dtype)) * self.conv.weight.size(0)


class CallingAtTimes(Mixer):
    """Also passes the weight on, which may be right, as for a penalty."""

    def forward(self, x):
        return self.conv(x) + self.conv.weight.square().sum()


class PassingOn(Mixer):
    """Hands the layer to something that calls it."""

    def forward(self, x):
        return nn.Sequential(self.conv)(x) + self.conv.weight.sum()


class Reading(Mixer):
    """Passes the weight on, as Mamba's mixers do."""

    def forward(self, x):
        return F.conv1d(x, self.conv.weight, self.conv.bias)


class Below(Reading):
    """Has its forward from another class."""


class Indexing(Mixer):
    """Calls the layer for a whole text and reads the weight for one token, as RecurrentGemma."""

    def forward(self, x):
        if x.shape[-1] == 3:
            return (x * self.conv.weight[:, 0, None]).sum(-1)
        return self.conv(x)


def model_with(kind):
    return nn.ModuleDict({"mixer": kind(), "head": nn.Linear(4, 4)})


CONFIG = LoraConfig(r=2, target_modules=["conv", "head"])


@pytest.mark.parametrize("kind", [Calling, CallingAtTimes, PassingOn])
def test_a_layer_that_is_called_is_adapted(kind):
    assert len(add_adapter(model_with(kind), CONFIG).matches) == 2


@pytest.mark.parametrize("kind", [Reading, Below, Indexing])
def test_a_layer_that_is_only_read_is_refused(kind):
    model = model_with(kind)
    before = snapshot(model)
    said = f"Cannot adapt mixer.conv: {kind.__name__} reads its weight instead of calling"
    with pytest.raises(TargetError, match=said):
        add_adapter(model, CONFIG)
    called = model_with(Calling)
    add_adapter(called, CONFIG)
    with pytest.raises(TargetError, match=said):
        add_adapter(model, Adapter.from_model(called))
    assert_untouched(model, before)


def test_a_model_without_its_source():
    made = type("Made", (Mixer,), {"forward": lambda self, x: self.conv(x)})
    assert len(add_adapter(model_with(made), CONFIG).matches) == 2


def test_an_embedding_that_is_only_read():
    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.positions = nn.Embedding(4, 4)
            self.words = nn.Embedding(4, 4)

        def forward(self, ids):
            h = self.words(ids) + self.positions.weight[: ids.shape[1]]
            return h @ self.words.weight.t()

    model = Positions()
    with pytest.raises(TargetError, match="positions: Positions reads its weight"):
        add_adapter(model, LoraConfig(r=2, target_modules=["positions", "words"]))
    assert add_adapter(model, LoraConfig(r=2, target_modules=["words"])).matches


def mixer(name):
    import transformers

    sizes = {"vocab_size": 16, "hidden_size": 8, "num_hidden_layers": 2, "intermediate_size": 16}
    ssm = {"state_size": 2, "time_step_rank": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    jamba = {"mamba_d_state": 2, "mamba_dt_rank": 2, "num_experts": 2, "attn_layer_period": 2}
    options = {
        "Mamba": sizes | ssm,
        "FalconMamba": sizes | ssm,
        "Jamba": sizes | heads | jamba | {"attn_layer_offset": 1, "expert_layer_period": 2},
    }[name]
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**options)
    return getattr(transformers, f"{name}ForCausalLM")(config).eval()


@pytest.mark.parametrize("name", ["Mamba", "FalconMamba", "Jamba"])
def test_mixers_are_adapted_where_an_update_acts(name):
    model = mixer(name)
    injection = add_adapter(model, LoraConfig(r=2, target_modules="all-linear"))
    left_out = [path for path, reason in injection.skipped if "reads its weight" in reason]
    assert left_out and {path.rpartition(".")[2] for path in left_out} == {"dt_proj"}
    randomize_(model)
    ids = torch.arange(8)[None]
    model(input_ids=ids).logits.square().sum().backward()
    for path, parameter in model.named_parameters():
        assert not parameter.requires_grad or parameter.grad.count_nonzero(), path
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        merge_adapters(model)
        assert largest_error(model(input_ids=ids).logits, expected) < 1e-4


def test_layers_whose_names_stand_in_for_others():
    # WavLM hands all four weights to a function of torch.
    from transformers import WavLMConfig, WavLMModel

    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    convolutions = {"conv_dim": (8, 8), "conv_stride": (5, 2), "conv_kernel": (10, 3)}
    positions = {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
    model = WavLMModel(WavLMConfig(intermediate_size=8, **sizes, **convolutions, **positions))
    names = ["q_proj", "k_proj", "v_proj", "out_proj"]
    with pytest.raises(TargetError, match=r"attention.\w+_proj: WavLMAttention reads its weight"):
        add_adapter(model, LoraConfig(r=2, target_modules=names))
    matched = {m.path.rpartition(".")[2] for m in add_adapter(model, LoraConfig(r=2)).matches}
    assert matched.isdisjoint(names) and "intermediate_dense" in matched


def test_mamba():
    from transformers import MambaConfig, MambaForCausalLM

    torch.manual_seed(0)
    sizes = {"vocab_size": 16, "hidden_size": 4, "state_size": 2, "time_step_rank": 2}
    model = MambaForCausalLM(MambaConfig(num_hidden_layers=1, **sizes))
    before = snapshot(model)
    with pytest.raises(TargetError, match=r"layers.0.mixer.conv1d: MambaMixer reads its weight"):
        add_adapter(model, LoraConfig(r=8, target_modules=["conv1d"]))
    assert_untouched(model, before)
    assert add_adapter(model, LoraConfig(r=2, target_modules=["in_proj"])).matches


class ReadInTraining(nn.Module):
    """A method of a child reads the weight in training and calls the layer in evaluation."""

    class Child(nn.Module):
        def __init__(self):
            super().__init__()
            self.mixed = nn.Linear(4, 4)
            self.penalized = nn.Linear(4, 4)

        def corrected(self, x):
            if self.training:
                x = F.linear(x, self.mixed.weight.clamp(-1, 1))
                x = x + self.penalized.weight.square().sum()
            else:
                x = self.mixed(x)
            return self.penalized(x)

    def __init__(self):
        super().__init__()
        self.child = self.Child()

    def forward(self, x):
        return self.child.corrected(x)


def test_a_layer_that_is_read_in_training_alone_is_left_out():
    found = add_adapter(ReadInTraining(), LoraConfig(r=2))
    assert [match.path for match in found.matches] == ["child.penalized"]
    with pytest.raises(TargetError, match="reads its weight"):
        add_adapter(ReadInTraining(), LoraConfig(r=2, target_modules=["mixed"]))

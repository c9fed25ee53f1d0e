"""Convolutions here and in PEFT: the same outputs, gradients, files and merged weights.

PEFT's lora_A takes stride and padding of its layer, but neither dilation nor padding_mode. What
acts beside such layers is then not what merging adds to them; lorakit's is, and the last tests say
so.
"""

import peft
import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn

from lorakit import (
    LoraConfig,
    add_adapter,
    count_parameters,
    load_adapter,
    merge_adapters,
    save_adapter,
    unmerge_adapters,
)
from lorakit.adapters import adapter_state_dict
from tiny_models import randomize_
from tolerances import LOGITS_TOLERANCE, largest_error

pytestmark = pytest.mark.filterwarnings("ignore:LoRA adapter added to ConvNd layer with groups > 1")
TOLERANCE, MOVED = 1e-5, 1e-2

# The class, its arguments besides the channels, and the size of an input.
LAYERS = {
    "1d": (nn.Conv1d, {"kernel_size": 3}, (9,)),
    "1d, strided": (nn.Conv1d, {"kernel_size": 4, "stride": 2, "padding": 1}, (9,)),
    "1d, same": (nn.Conv1d, {"kernel_size": 5, "padding": "same"}, (9,)),
    "1d, groups": (nn.Conv1d, {"kernel_size": 3, "padding": 1, "groups": 4}, (9,)),
    "2d": (nn.Conv2d, {"kernel_size": 3}, (6, 7)),
    "2d, strided": (
        nn.Conv2d,
        {"kernel_size": (2, 3), "stride": (2, 1), "padding": (0, 2)},
        (6, 7),
    ),
    "2d, valid": (nn.Conv2d, {"kernel_size": 2, "padding": "valid", "bias": False}, (6, 7)),
    "2d, pointwise": (nn.Conv2d, {"kernel_size": 1}, (6, 7)),
    "2d, groups": (nn.Conv2d, {"kernel_size": 3, "padding": 1, "stride": 2, "groups": 2}, (6, 7)),
    "3d": (nn.Conv3d, {"kernel_size": 3, "padding": 1}, (4, 5, 4)),
    "3d, strided": (nn.Conv3d, {"kernel_size": (1, 2, 3), "stride": (1, 2, 1)}, (4, 5, 4)),
    "3d, groups": (nn.Conv3d, {"kernel_size": 2, "groups": 2}, (4, 5, 4)),
}
SETTINGS = {
    "plain": {},
    "rslora": {"use_rslora": True},
    "patterns": {"r": 8, "rank_pattern": {"0": 4}, "alpha_pattern": {"0": 5}},
    "lora_only": {"bias": "lora_only"},
    "all": {"bias": "all"},
    "dora": {"use_dora": True},
}
GROUPED = {name for name, (_, options, _) in LAYERS.items() if "groups" in options}
# For DoRA in groups PEFT takes the lengths of something of the weight's size, not of its rows.
CASES = [
    (layer, setting)
    for layer in LAYERS
    for setting in SETTINGS
    if not (layer in GROUPED and setting == "dora")
]
MERGEABLE = [case for case in CASES if case[0] not in GROUPED]


def net(layer):
    kind, options, _ = LAYERS[layer]
    torch.manual_seed(0)
    return nn.Sequential(kind(4, 8, **options), nn.Tanh(), kind(8, 8, 1, bias=True)).eval()


def inputs(layer):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(3, 4, *LAYERS[layer][2], generator=generator)


def settings(setting, **others):
    return {"r": 4, "lora_alpha": 3, "target_modules": ["0"]} | SETTINGS[setting] | others


def theirs_of(layer, setting):
    model = get_peft_model(net(layer), peft.LoraConfig(**settings(setting))).eval()
    return randomize_(model, seed=3)


def ours_of(layer, theirs, directory):
    theirs.save_pretrained(directory)
    ours = net(layer)
    load_adapter(ours, directory, trainable=True)
    return ours.eval()


@pytest.mark.parametrize(("layer", "setting"), CASES)
def test_what_peft_saved_gives_its_outputs_and_gradients(layer, setting, tmp_path):
    theirs = theirs_of(layer, setting)
    ours = ours_of(layer, theirs, tmp_path)
    outputs, read = [], []
    for model in (ours, theirs):
        x = inputs(layer).requires_grad_()
        outputs.append(model(x))
        (outputs[-1] ** 2).sum().backward()
        read.append(x.grad)
    assert largest_error(*outputs) < TOLERANCE
    assert largest_error(outputs[0], net(layer)(inputs(layer))) > MOVED
    assert largest_error(*read) < LOGITS_TOLERANCE
    update = ours[0].updates["default"]
    parameters = {
        "lora_A": update.lora_A,
        "lora_B": update.lora_B,
        "lora_magnitude": update.magnitude,
    }
    for name, parameter in parameters.items():
        theirs_have = [p for key, p in theirs.named_parameters() if name in key]
        assert len(theirs_have) == (parameter is not None)
        for expected in theirs_have:
            got = parameter.grad.view(expected.shape)
            assert largest_error(got, expected.grad) < LOGITS_TOLERANCE, name


@pytest.mark.parametrize(("layer", "setting"), CASES)
def test_what_lorakit_saved_peft_loads(layer, setting, tmp_path):
    ours = net(layer)
    add_adapter(ours, LoraConfig(**settings(setting)))
    randomize_(ours)
    save_adapter(ours, tmp_path)
    theirs = PeftModel.from_pretrained(net(layer), tmp_path).eval()
    x = inputs(layer)
    assert largest_error(theirs(x), ours(x)) < TOLERANCE
    assert largest_error(ours(x), net(layer)(x)) > MOVED


@pytest.mark.parametrize(("layer", "setting"), CASES)
def test_both_have_the_same_tensors_and_train_as_many_numbers(layer, setting):
    theirs = get_peft_model(net(layer), peft.LoraConfig(**settings(setting)))
    ours = net(layer)
    add_adapter(ours, LoraConfig(**settings(setting)))
    assert count_parameters(ours).trainable == theirs.get_nb_trainable_parameters()[0]
    expected = peft.get_peft_model_state_dict(theirs)
    got = adapter_state_dict(ours)
    assert {key: tensor.shape for key, tensor in got.items()} == {
        key: tensor.shape for key, tensor in expected.items()
    }
    for key in got:
        if "magnitude" in key:
            assert largest_error(got[key], expected[key]) < TOLERANCE


@pytest.mark.parametrize(("layer", "setting"), MERGEABLE)
def test_a_merge_here_equals_a_merge_there(layer, setting, tmp_path):
    theirs = theirs_of(layer, setting)
    ours = ours_of(layer, theirs, tmp_path)
    before = ours[0].weight.clone()
    merge_adapters(ours)
    merged = theirs.merge_and_unload()
    assert largest_error(ours[0].weight, merged[0].weight) < TOLERANCE
    assert largest_error(ours(inputs(layer)), merged(inputs(layer))) < TOLERANCE
    unmerge_adapters(ours)
    assert torch.equal(ours[0].weight, before)


ELSEWHERE = {
    "dilation": {"padding": 2, "dilation": 2},
    "reflect": {"padding": 1, "padding_mode": "reflect"},
    "replicate": {"padding": 1, "padding_mode": "replicate"},
    "circular": {"padding": 1, "padding_mode": "circular"},
}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_merging_changes_no_output_where_it_does_in_peft(name, tmp_path):
    def build():
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(4, 8, 3, **ELSEWHERE[name])).eval()

    theirs = get_peft_model(build(), peft.LoraConfig(**settings("plain"))).eval()
    randomize_(theirs, seed=3)
    theirs.save_pretrained(tmp_path)
    ours = build()
    load_adapter(ours, tmp_path)
    x = inputs("2d")
    beside = ours(x)
    try:
        assert largest_error(theirs(x), beside) > MOVED
    except RuntimeError:  # lora_A without the dilation makes an image of another size
        assert name == "dilation"
    merge_adapters(ours)
    assert largest_error(ours(x), beside) < TOLERANCE
    assert largest_error(theirs.merge_and_unload()(x), beside) < TOLERANCE

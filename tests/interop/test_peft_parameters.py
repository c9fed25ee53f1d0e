"""Experts and nn.MultiheadAttention here and in PEFT: the same outputs, gradients and files."""

import json

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from lorakit import LoraConfig, add_adapter, load_adapter, merge_adapters, save_adapter
from lorakit.adapters import adapter_state_dict, load_adapter_state_dict
from lorakit.adapters.peft_files.files import CONFIG_FILE, WEIGHTS_FILE
from tiny_models import Encoder, gpt_oss, mixtral, qwen3_moe, randomize_, tokens
from tiny_models.peft_models import loaded_from_peft, peft_model
from tolerances import largest_error

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*target_parameters.*:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:.*(rank|alpha)_pattern keys did not match any targeted"),
    pytest.mark.filterwarnings("ignore:Adapter .* was active which is now deleted"),
]
TOLERANCE = 1e-5

BOTH = ["experts.gate_up_proj", "experts.down_proj"]
CASES = {
    "Mixtral": (mixtral, {"target_modules": [], "target_parameters": BOTH}),
    "Mixtral, first alone": (
        mixtral,
        {"target_modules": [], "target_parameters": ["gate_up_proj"]},
    ),
    "Mixtral, last alone": (mixtral, {"target_modules": [], "target_parameters": ["down_proj"]}),
    "Mixtral, with attention": (
        mixtral,
        {"target_modules": ["q_proj", "v_proj"], "target_parameters": BOTH, "use_rslora": True},
    ),
    "Mixtral, ranks": (
        mixtral,
        {
            "target_modules": [],
            "target_parameters": BOTH,
            "rank_pattern": {"gate_up_proj": 2},
            "alpha_pattern": {"down_proj": 5},
        },
    ),
    "Mixtral, one layer": (
        mixtral,
        {"target_modules": [], "target_parameters": ["layers.1.mlp.experts.down_proj"]},
    ),
    "Qwen3": (qwen3_moe, {"target_modules": ["o_proj"], "target_parameters": BOTH}),
    "gpt-oss": (gpt_oss, {"target_modules": [], "target_parameters": BOTH}),
    "gpt-oss, last alone": (gpt_oss, {"target_modules": [], "target_parameters": ["down_proj"]}),
    "attention": (Encoder, {"target_modules": ["self_attn"]}),
    "attention, ranks": (
        Encoder,
        {
            "target_modules": ["self_attn", "linear1"],
            "rank_pattern": {"layers.0.self_attn": 2},
            "alpha_pattern": {"self_attn": 3},
        },
    ),
    "attention, output biases": (Encoder, {"target_modules": ["self_attn"], "bias": "lora_only"}),
}


@pytest.fixture(autouse=True)
def _weights_are_read_by_layers():
    # torch's fast path skips what PEFT adds; that lorakit's acts there is tested elsewhere.
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(True)


def outputs(model):
    inputs = tokens()
    out = model(**inputs)
    return out if isinstance(out, torch.Tensor) else out.logits


def gradients(model):
    model.zero_grad()
    outputs(model).square().sum().backward()


@pytest.mark.parametrize("case", CASES)
def test_what_peft_saved_gives_its_outputs_and_gradients(case, tmp_path):
    build, options = CASES[case]
    theirs = peft_model(build, r=3, **options)
    ours = loaded_from_peft(build, theirs, tmp_path)
    assert largest_error(outputs(ours), outputs(theirs)) < TOLERANCE
    assert largest_error(outputs(ours), outputs(build())) > 100 * TOLERANCE
    gradients(ours)
    gradients(theirs)
    expected = {
        name.replace(".default", ""): parameter.grad
        for name, parameter in theirs.named_parameters()
        if parameter.grad is not None
    }
    # The gradients, named and laid out as the file names and lays out the numbers themselves.
    with torch.no_grad():
        for parameter in ours.parameters():
            if parameter.requires_grad:
                parameter.copy_(parameter.grad)
    found = adapter_state_dict(ours)
    assert found.keys() == expected.keys()
    for key, gradient in found.items():
        # PEFT adds the update of an output projection twice and differentiates one of the two.
        if ".out_proj." in key and "lora_" in key:
            gradient = gradient / 2
        assert largest_error(gradient, expected[key]) < 2 * TOLERANCE, key


@pytest.mark.parametrize("case", CASES)
def test_what_is_saved_gives_peft_the_same_outputs(case, tmp_path):
    build, options = CASES[case]
    ours = build()
    add_adapter(ours, LoraConfig(r=3, **options))
    randomize_(ours, seed=4)
    save_adapter(ours, tmp_path)
    theirs = PeftModel.from_pretrained(build(), tmp_path).eval()
    assert largest_error(outputs(theirs), outputs(ours)) < TOLERANCE
    again = build()
    load_adapter(again, tmp_path)
    assert torch.equal(outputs(again), outputs(ours))


@pytest.mark.parametrize("case", CASES)
def test_the_files_of_both_have_the_same_keys_and_shapes(case, tmp_path):
    build, options = CASES[case]
    peft_model(build, r=3, **options).save_pretrained(tmp_path / "theirs")
    ours = build()
    add_adapter(ours, LoraConfig(r=3, **options))
    save_adapter(ours, tmp_path / "ours")
    shapes = [
        {key: tensor.shape for key, tensor in load_file(tmp_path / who / WEIGHTS_FILE).items()}
        for who in ("ours", "theirs")
    ]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("case", CASES)
def test_merged_weights_are_peft_s(case, tmp_path):
    build, options = CASES[case]
    theirs = peft_model(build, r=3, **options)
    theirs.save_pretrained(tmp_path)
    ours = build()
    load_adapter(ours, tmp_path)
    merge_adapters(ours)
    merged = theirs.merge_and_unload()
    assert largest_error(outputs(ours), outputs(merged)) < TOLERANCE
    expected = merged.state_dict()
    found = {key: t for key, t in ours.state_dict().items() if "updates." not in key}
    assert found.keys() == expected.keys()
    for key, tensor in found.items():
        assert largest_error(tensor, expected[key]) < TOLERANCE, key


@pytest.mark.parametrize("case", ["Mixtral", "gpt-oss", "attention"])
def test_tensors_of_a_file_fill_what_a_model_carries(case, tmp_path):
    build, options = CASES[case]
    theirs = peft_model(build, r=3, **options)
    theirs.save_pretrained(tmp_path)
    ours = build()
    add_adapter(ours, LoraConfig(r=3, **options))
    load_adapter_state_dict(ours, load_file(tmp_path / WEIGHTS_FILE))
    assert largest_error(outputs(ours), outputs(theirs)) < TOLERANCE


def test_a_configuration_that_names_no_modules_adapts_parameters_alone(tmp_path):
    ours = mixtral()
    add_adapter(ours, LoraConfig(r=3, target_modules=[], target_parameters=BOTH))
    save_adapter(ours, tmp_path)
    values = json.loads((tmp_path / CONFIG_FILE).read_text())
    assert values["target_modules"] == []
    assert sorted(values["target_parameters"]) == ["down_proj", "gate_up_proj"]

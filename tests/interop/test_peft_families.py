"""Families whose layers need care: files go both ways between lorakit and PEFT."""

import json

import peft
import pytest
import torch
import transformers
from peft import PeftModel, get_peft_model

from lorakit import LoraConfig, add_adapter, load_adapter, merge_and_unload, save_adapter
from tiny_models import randomize_
from tolerances import largest_error

SIZES = {
    "vocab_size": 33,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "initializer_range": 0.3,
}
HEADS = {"num_key_value_heads": 2}
GATE = {"shared_expert_intermediate_size": 8, "moe_intermediate_size": 8, "num_experts": 4}
NEXT = {"head_dim": 8, "linear_num_key_heads": 2, "linear_num_value_heads": 2}
NEXT |= {"linear_key_head_dim": 4, "linear_value_head_dim": 4, "num_experts_per_tok": 2}
NEXT |= {"layer_types": ["linear_attention", "full_attention"]}
# What PEFT says of the patterns that it writes for experts.
pytestmark = pytest.mark.filterwarnings("ignore:The following .*_pattern keys:RuntimeWarning")
PICTURE = {"image_size": 8, "patch_size": 4}

FAMILIES = {
    "Falcon": ("FalconForCausalLM", {"bos_token_id": 1, "eos_token_id": 2}),
    "Qwen2Moe": ("Qwen2MoeForCausalLM", GATE | HEADS | {"num_experts_per_tok": 2}),
    "Qwen3Next": ("Qwen3NextForCausalLM", GATE | HEADS | NEXT),
    "Esm": ("EsmForMaskedLM", {"mask_token_id": 32, "pad_token_id": 1}),
    "SiglipVision": ("SiglipVisionModel", PICTURE),
}
QKVO = ["q_proj", "k_proj", "v_proj", "out_proj"]
# Of Qwen3-Next's layers PEFT takes some names to be those of experts.
CASES = [(name, "all-linear") for name in FAMILIES if name != "Qwen3Next"]
CASES += [("SiglipVision", QKVO)]


def built(name):
    model, options = FAMILIES[name]
    config = getattr(transformers, f"{name}Config")(**SIZES | options)
    torch.manual_seed(0)
    return getattr(transformers, model)(config).eval()


@torch.no_grad()
def output(model, name):
    if name == "SiglipVision":
        pixels = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
        return model(pixel_values=pixels).pooler_output
    return model(input_ids=torch.arange(3, 11)[None]).logits


@pytest.mark.parametrize(("name", "targets"), CASES, ids=str)
def test_ours_saves_merges_and_loads_in_peft(name, targets, tmp_path):
    model = built(name)
    base = output(model, name)
    if name == "SiglipVision" and targets == "all-linear":
        # PEFT adds the update of an attention in other ways; see docs/adapters.md.
        add_adapter(model, LoraConfig(r=8, exclude_modules=["head.attention"]))
    else:
        add_adapter(model, LoraConfig(r=8, target_modules=targets))
    randomize_(model)
    expected = output(model, name)
    assert largest_error(base, expected) > 1e-2
    save_adapter(model, tmp_path)
    again = built(name)
    load_adapter(again, tmp_path)
    assert torch.equal(output(again, name), expected)
    assert largest_error(output(merge_and_unload(again), name), expected) < 1e-4
    theirs = PeftModel.from_pretrained(built(name), tmp_path).eval()
    assert largest_error(output(theirs, name), expected) < 1e-4


@pytest.mark.parametrize(("name", "targets"), CASES, ids=str)
def test_peft_s_file_loads(name, targets, tmp_path):
    theirs = get_peft_model(built(name), peft.LoraConfig(r=8, target_modules=targets)).eval()
    randomize_(theirs)
    expected = output(theirs, name)
    theirs.save_pretrained(tmp_path)
    model = built(name)
    load_adapter(model, tmp_path)
    assert largest_error(output(model, name), expected) < 1e-4
    save_adapter(model, tmp_path / "again")
    again = built(name)
    load_adapter(again, tmp_path / "again")
    assert torch.equal(output(again, name), output(model, name))


@pytest.mark.parametrize("use_rslora", [False, True])
@pytest.mark.parametrize("name", ["Qwen2Moe", "Qwen3Next"])
def test_a_gate_of_one_output_has_the_rank_it_allows(name, use_rslora, tmp_path):
    model = built(name)
    injection = add_adapter(model, LoraConfig(r=8, lora_alpha=12, use_rslora=use_rslora))
    paths = [f"model.layers.{layer}.mlp.shared_expert_gate" for layer in range(2)]
    assert injection.lowered == tuple((path, 1) for path in paths)
    assert f"Rank 1, the largest that the layer allows: {paths[0]}, {paths[1]}" in str(injection)
    assert len({match.scaling for match in injection.matches}) == 1
    save_adapter(model, tmp_path)
    written = json.loads((tmp_path / "adapter_config.json").read_text())
    assert written["r"] == 8 and set(written["rank_pattern"].values()) == {1}
    expected = output(randomize_(model), name)
    save_adapter(model, tmp_path)
    again = built(name)
    load_adapter(again, tmp_path)
    assert torch.equal(output(again, name), expected)


def test_experts_that_are_parameters_are_named_in_the_lines():
    model = built("Qwen2Moe")
    names = ["experts.gate_up_proj", "experts.down_proj"]
    injection = add_adapter(model, LoraConfig(r=2))
    said = f"Left out, experts held as 3-D parameters, which target_parameters={names} adapts"
    assert said in str(injection)
    all_of_it = add_adapter(built("Qwen2Moe"), LoraConfig(r=2, target_parameters=names))
    assert "3-D" not in str(all_of_it)
    one = add_adapter(built("Qwen2Moe"), LoraConfig(r=2, target_parameters=names[:1]))
    assert f"target_parameters={names[1:]}" in str(one)

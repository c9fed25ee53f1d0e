"""DoRA here and in PEFT: the same outputs, gradients, files and merged weights."""

import peft
import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn
from transformers.pytorch_utils import Conv1D

from lorakit import (
    LoraConfig,
    add_adapter,
    count_parameters,
    load_adapter,
    merge_adapters,
    save_adapter,
    set_adapter,
    unmerge_adapters,
)
from lorakit.adapters import adapter_state_dict
from lorakit.adapters.peft_files.files import WEIGHTS_FILE
from tiny_models import bert, gpt2, llama, logits, randomize_, t5
from tiny_models.peft_models import loaded_from_peft, peft_model
from tolerances import LOGITS_TOLERANCE, largest_error

TOLERANCE = 1e-5

CASES = {
    "Linear": (llama, {"target_modules": ["q_proj", "v_proj"]}),
    "Linear, all-linear": (llama, {"target_modules": "all-linear"}),
    "Linear, rslora": (llama, {"target_modules": ["q_proj"], "use_rslora": True, "r": 3}),
    "Linear, patterns": (
        llama,
        {"target_modules": ["k_proj", "up_proj"], "rank_pattern": {"k_proj": 2}, "r": 4},
    ),
    "Linear, biases": (bert, {"target_modules": ["query", "key"], "task_type": "TOKEN_CLS"}),
    "Linear, lora_only": (bert, {"target_modules": ["query", "dense"], "bias": "lora_only"}),
    "Conv1D": (gpt2, {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
    "Embedding": (llama, {"target_modules": ["embed_tokens"]}),
    "Embedding and Linear": (llama, {"target_modules": ["embed_tokens", "down_proj"]}),
    "T5": (t5, {"target_modules": ["q", "v"]}),
}


@pytest.mark.parametrize("case", CASES)
def test_what_peft_saved_gives_its_outputs_and_gradients(case, tmp_path):
    build, options = CASES[case]
    theirs = peft_model(build, use_dora=True, **options)
    ours = loaded_from_peft(build, theirs, tmp_path)
    assert largest_error(logits(ours), logits(theirs)) < TOLERANCE
    assert largest_error(logits(ours), logits(build())) > 100 * TOLERANCE
    for model in (ours, theirs):
        model.zero_grad()
        (forward(model) ** 2).sum().backward()
    gradients = {
        key.replace(".default", "").removesuffix(".weight"): parameter.grad
        for key, parameter in theirs.named_parameters()
        if "lora_" in key
    }
    place = adapter_state_dict(ours)
    by_storage = {p.data_ptr(): p.grad for p in ours.parameters() if p.grad is not None}
    assert sum("magnitude" in key for key in gradients) * 3 == len(gradients)
    for key, expected in gradients.items():
        tensor = place.get(key, place.get(f"{key}.weight"))
        assert largest_error(by_storage[tensor.data_ptr()], expected) < TOLERANCE, key


def forward(model):
    ids = torch.arange(12).view(2, 6)
    inputs = {"input_ids": ids}
    config = getattr(model, "config", None)
    if getattr(config, "is_encoder_decoder", False):
        inputs["decoder_input_ids"] = ids
    return model(**inputs).logits


@pytest.mark.parametrize("case", CASES)
def test_what_lorakit_saved_peft_loads(case, tmp_path):
    build, options = CASES[case]
    ours = build()
    add_adapter(ours, LoraConfig(use_dora=True, **options))
    assert largest_error(logits(ours), logits(build())) < TOLERANCE  # B = 0 changes nothing
    randomize_(ours)
    save_adapter(ours, tmp_path)
    theirs = PeftModel.from_pretrained(build(), tmp_path).eval()
    assert largest_error(logits(theirs), logits(ours)) < TOLERANCE
    assert largest_error(logits(ours), logits(build())) > 100 * TOLERANCE


@pytest.mark.parametrize("case", CASES)
def test_both_start_with_the_same_magnitudes_and_train_as_many_parameters(case):
    build, options = CASES[case]
    theirs = get_peft_model(build(), peft.LoraConfig(use_dora=True, **options))
    ours = build()
    # PEFT trains no head unless the task is named.
    heads = add_adapter(build(), LoraConfig(use_dora=True, **options)).heads
    if heads and "task_type" not in options:
        options = {**options, "exclude_modules": heads}
    injection = add_adapter(ours, LoraConfig(use_dora=True, **options))
    assert count_parameters(ours).trainable == theirs.get_nb_trainable_parameters()[0]
    trained = [t for k, t in adapter_state_dict(ours).items() if ".lora_" in k]
    assert injection.lora_parameters == sum(tensor.numel() for tensor in trained)
    expected = {
        key.replace(".default.weight", ""): p
        for key, p in theirs.named_parameters()
        if "lora_magnitude_vector" in key
    }
    got = {k: t for k, t in adapter_state_dict(ours).items() if "lora_magnitude_vector" in k}
    assert got.keys() == expected.keys()
    for key, magnitude in got.items():
        assert largest_error(magnitude, expected[key]) < TOLERANCE


@pytest.mark.parametrize("case", CASES)
def test_a_merge_here_equals_a_merge_there(case, tmp_path):
    build, options = CASES[case]
    theirs = peft_model(build, use_dora=True, **options)
    ours = loaded_from_peft(build, theirs, tmp_path)
    before = {name: t.clone() for name, t in build().state_dict().items()}
    merge_adapters(ours)
    merged = theirs.merge_and_unload()
    assert largest_error(logits(ours), logits(merged)) < LOGITS_TOLERANCE
    unmerge_adapters(ours)
    for name, tensor in ours.state_dict().items():
        assert name not in before or torch.equal(tensor, before[name])


def test_several_adapters(tmp_path):
    """PEFT makes the second magnitude scale what the first has made; here both scale the base."""
    options = {"target_modules": ["q_proj", "k_proj", "up_proj"]}
    for number, use_dora in ((1, True), (2, True), (3, False)):
        model = llama()
        add_adapter(model, LoraConfig(use_dora=use_dora, **options))
        randomize_(model, seed=number)
        save_adapter(model, tmp_path / f"n{number}")
    names = ["n1", "n2", "n3"]
    ours = llama()
    theirs = PeftModel.from_pretrained(llama(), tmp_path / "n1", "n1").eval()
    for name in names:
        load_adapter(ours, tmp_path / name, name)
    for name in names[1:]:
        theirs.load_adapter(tmp_path / name, name)
    alone = logits(ours)
    for active in (["n1"], ["n2"], ["n1", "n3"]):
        set_adapter(ours, active)
        theirs.base_model.set_adapter(active)
        assert largest_error(logits(ours), logits(theirs)) < TOLERANCE
    for active in (["n1", "n2"], names):
        set_adapter(ours, active)
        expected = logits(ours)
        assert largest_error(expected, alone) > 100 * TOLERANCE
        set_adapter(ours, active[::-1])
        assert largest_error(logits(ours), expected) < TOLERANCE
        merge_adapters(ours)
        assert largest_error(logits(ours), expected) < LOGITS_TOLERANCE
        unmerge_adapters(ours)


@pytest.mark.parametrize("kind", ["Linear", "Conv1D"])
def test_dropout_has_the_same_mean(kind, tmp_path):
    """PEFT drops the input of the base's product as well; see docs/adr/0011."""

    def build():
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(12, 10) if kind == "Linear" else Conv1D(10, 12))

    theirs = peft_model(build, use_dora=True, target_modules=["0"], lora_dropout=0.4, r=3)
    ours = loaded_from_peft(build, theirs, tmp_path)
    x = torch.linspace(-1, 1, 12)
    outputs = []
    for model in (ours, theirs):
        torch.manual_seed(0)
        with torch.no_grad():
            outputs.append(model.train()(x.expand(40000, 12)))
    expected = ours.eval()(x)
    for h in outputs:
        assert h.var(0).mean() > 0.01
        assert largest_error(h.mean(0), expected) < 0.01


def test_files_of_older_versions_have_another_key_for_the_magnitude(tmp_path):
    theirs = peft_model(llama, use_dora=True, target_modules=["q_proj"])
    theirs.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / WEIGHTS_FILE)
    old = {k + ".weight" * k.endswith("magnitude_vector"): t for k, t in tensors.items()}
    assert old.keys() != tensors.keys()
    save_file(old, tmp_path / WEIGHTS_FILE)
    ours = llama()
    load_adapter(ours, tmp_path)
    assert largest_error(logits(ours), logits(theirs)) < TOLERANCE

"""Files with names of transformers 4, and with adapters' names: the outputs that PEFT gives."""

import json

import peft
import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import save_file
from torch import nn

from lorakit import load_adapter
from lorakit.adapters.peft_files.files import CONFIG_FILE, WEIGHTS_FILE
from lorakit.layers.kinds.experts import is_known_experts
from tiny_models import llama, logits, randomize_
from tiny_models.by_type import logits_of, small_model
from tolerances import largest_error

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*target_parameters.*:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:.*(rank|alpha)_pattern keys did not match any targeted"),
]
TOLERANCE = 1e-5
R, ALPHA = 2, 4

WS, PROJECTIONS = ("w1", "w3", "w2"), ("gate_proj", "up_proj", "down_proj")
MIXTURES = {
    **dict.fromkeys(("mixtral", "minimax", "minimax_m2"), ("block_sparse_moe", WS)),
    **dict.fromkeys(("deepseek_v2", "deepseek_v3", "dots1", "ernie4_5_moe"), ("mlp", PROJECTIONS)),
    **dict.fromkeys(("exaone_moe", "flex_olmo", "glm4_moe", "olmoe"), ("mlp", PROJECTIONS)),
    **dict.fromkeys(("qwen3_moe", "qwen3_next", "solar_open"), ("mlp", PROJECTIONS)),
}
"""Name of the block of experts in transformers 4, and those of gate, up and down."""


def write(directory, factors, **config):
    tensors = {}
    for path, (A, B) in factors.items():
        tensors[f"base_model.model.{path}.lora_A.weight"] = A
        tensors[f"base_model.model.{path}.lora_B.weight"] = B
    save_file(tensors, directory / WEIGHTS_FILE)
    values = {"peft_type": "LORA", "r": R, "lora_alpha": ALPHA, "task_type": "CAUSAL_LM", **config}
    (directory / CONFIG_FILE).write_text(json.dumps(values))


class Old:
    """Factors under old names, drawn at random, and a model with their updates in its weights."""

    def __init__(self, model):
        self.model = model
        self.factors = {}
        self._generator = torch.Generator().manual_seed(1)

    def add(self, name, weight):
        out_features, in_features = weight.shape
        A = torch.randn(R, in_features, generator=self._generator) * 0.2
        B = torch.randn(out_features, R, generator=self._generator) * 0.2
        self.factors[name] = A, B
        weight += ALPHA / R * B @ A


@torch.no_grad()
def of_experts(model_type, names):
    moe, (gate, up, down) = MIXTURES[model_type]
    old = Old(small_model(model_type))
    for path, module in old.model.named_modules():
        if is_known_experts(module):
            before, _, last = path.rpartition(".mlp.")
            for e in range(module.num_experts):
                name = f"{before}.{moe}.{last}.{e}"
                first = module.gate_up_proj.data[e].chunk(2)
                old.add(f"{name}.{gate}", first[0])
                old.add(f"{name}.{up}", first[1])
                old.add(f"{name}.{down}", module.down_proj.data[e])
        elif path.endswith(names):
            old.add(path.replace(".mlp.", f".{moe}."), module.weight.data)
    return old


def check(old, build, directory, outputs=logits_of):
    expected = outputs(old.model)
    theirs = PeftModel.from_pretrained(build(), directory).eval()
    assert largest_error(outputs(theirs), expected) < TOLERANCE
    ours = build()
    load_adapter(ours, directory)
    assert largest_error(outputs(ours), expected) < TOLERANCE
    assert largest_error(outputs(build()), expected) > 100 * TOLERANCE


@pytest.mark.parametrize("model_type", MIXTURES)
def test_updates_of_single_experts(model_type, tmp_path):
    others = ("o_proj", "mlp.gate") if model_type in ("mixtral", "qwen3_moe") else ("o_proj",)
    old = of_experts(model_type, others)
    names = [*MIXTURES[model_type][1], *(name.rpartition(".")[2] for name in others)]
    write(tmp_path, old.factors, target_modules=names)
    check(old, lambda: small_model(model_type), tmp_path)


def test_updates_of_experts_that_a_regex_selects(tmp_path):
    old = of_experts("mixtral", ())
    write(tmp_path, old.factors, target_modules=r".*experts\.\d+\.w[123]|.*experts\.w[123]")
    check(old, lambda: small_model("mixtral"), tmp_path)


@torch.no_grad()
def test_layers_beside_the_experts_keep_the_updates_that_peft_drops(tmp_path):
    old = of_experts("deepseek_v3", ("gate_proj", "up_proj", "down_proj", "o_proj"))
    write(tmp_path, old.factors, target_modules=[*PROJECTIONS, "o_proj"])
    ours = small_model("deepseek_v3")
    load_adapter(ours, tmp_path)
    assert largest_error(logits_of(ours), logits_of(old.model)) < TOLERANCE


PREFIXES = {
    **dict.fromkeys(
        (
            *("aria", "aya_vision", "gemma3", "got_ocr2", "internvl", "llava", "llava_next"),
            *("llava_next_video", "llava_onevision", "mistral3", "paligemma", "qwen2_audio"),
            *("video_llava", "vipllava"),
        ),
        ("model.language_model.", "language_model.model."),
    ),
    "fuyu": ("model.language_model.", "language_model.model."),
}


@pytest.mark.parametrize("model_type", PREFIXES)
@torch.no_grad()
def test_keys_with_old_prefixes(model_type, tmp_path):
    now, then = PREFIXES[model_type]
    old = Old(small_model(model_type))
    for path, module in old.model.named_modules():
        if path.startswith(now) and isinstance(module, nn.Linear):
            old.add(path.replace(now, then, 1), module.weight.data)
    names = sorted({path.rpartition(".")[2] for path in old.factors})
    targets = rf".*language_model.*\.({'|'.join(names)})"
    write(tmp_path, old.factors, target_modules=targets)
    check(old, lambda: small_model(model_type), tmp_path)


@pytest.mark.parametrize(
    "options", [{}, {"use_dora": True}, {"modules_to_save": ["lm_head"]}], ids=str
)
def test_keys_with_the_adapter_s_name(options, tmp_path):
    config = peft.LoraConfig(r=R, target_modules=["q_proj", "embed_tokens"], **options)
    theirs = randomize_(get_peft_model(llama(), config).eval(), seed=3)
    theirs.save_pretrained(tmp_path)
    trained = ("lora_", "modules_to_save")
    state = {k: t for k, t in theirs.state_dict().items() if any(part in k for part in trained)}
    assert any(key.endswith(".lora_A.default.weight") for key in state)
    save_file({key: tensor.clone() for key, tensor in state.items()}, tmp_path / WEIGHTS_FILE)
    ours = llama()
    load_adapter(ours, tmp_path)
    assert largest_error(logits(ours), logits(theirs)) < TOLERANCE

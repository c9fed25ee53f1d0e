"""Adapters extracted from a base and its full fine-tune."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from lorakit import (
    Adapter,
    LoraConfig,
    add_adapter,
    extract_adapter,
    load_adapter,
    merge_and_unload,
)
from lorakit.adapters import extract
from lorakit.errors import (
    AdapterFileError,
    AdapterMismatchError,
    AdapterStateError,
    ConfigError,
    MissingFileError,
    ShapeError,
    TargetError,
)
from tiny_models import TinyNet, bert, gpt2, llama, logits, randomize_
from tolerances import LOGITS_TOLERANCE, TOLERANCE, largest_error

EXACT = TOLERANCE[torch.float32]
BUILDS = {
    "llama": (llama, {"target_modules": ["q_proj", "down_proj"]}),
    "Conv1D": (gpt2, {"target_modules": ["c_attn", "c_proj"]}),
    "embedding": (llama, {"target_modules": ["embed_tokens", "o_proj"]}),
    "rslora": (llama, {"target_modules": ["v_proj"], "use_rslora": True, "lora_alpha": 5}),
    "ranks": (llama, {"target_modules": ["q_proj", "o_proj"], "rank_pattern": {"o_proj": 5}}),
}


def fine_tuned(build, r=3, **options):
    """Return a model whose weights have moved by an update of rank r."""
    model = build()
    add_adapter(model, LoraConfig(r=r, **{k: v for k, v in options.items() if "_mod" in k}))
    return merge_and_unload(randomize_(model))


def test_what_is_extracted_has_begun_nowhere():
    made = extract(llama(), fine_tuned(llama), LoraConfig(r=3, init_lora_weights="pissa"))
    assert made.adapter.config.init_lora_weights is True


@pytest.mark.parametrize("as_files", [False, True], ids=["models", "directories"])
@pytest.mark.parametrize("case", BUILDS)
def test_a_change_of_low_rank_is_found_exactly(case, as_files, tmp_path):
    build, options = BUILDS[case]
    base, tuned = build(), fine_tuned(build, **options)
    expected = logits(tuned)
    if as_files:
        base.save_pretrained(tmp_path / "base")
        tuned.save_pretrained(tmp_path / "tuned")
        base, tuned = tmp_path / "base", tmp_path / "tuned"
    made = extract(base, tuned, LoraConfig(r=3, **options))
    assert made.share == pytest.approx(1, abs=1e-6)
    assert made.left_out == {}
    assert made.adapter.base_model == (str(base) if as_files else None)
    made.adapter.save(tmp_path / "adapter")
    model = build()
    load_adapter(model, tmp_path / "adapter")
    assert largest_error(logits(model), expected) < LOGITS_TOLERANCE
    assert largest_error(logits(build()), expected) > 100 * LOGITS_TOLERANCE


def moved(seed=3):
    """Return a network all of whose weights have moved, as full fine-tuning does."""
    model = TinyNet()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return model


def test_the_share_kept_is_that_of_the_best_approximation_and_the_rest_is_reported():
    base, tuned = TinyNet(), moved()
    made = extract(base, tuned, LoraConfig(r=2, lora_alpha=7, target_modules=["up"]))
    assert list(made.kept) == ["layers.0.up", "layers.1.up"]
    kept = whole = 0.0
    for path in made.kept:
        delta = (tuned.get_submodule(path).weight - base.get_submodule(path).weight).detach()
        s = torch.linalg.svdvals(delta.double()).square()
        assert made.kept[path] == pytest.approx((s[:2].sum() / s.sum()).item(), rel=1e-5)
        assert made.norms[path] == pytest.approx(s.sum().sqrt().item(), rel=1e-5)
        got = made.adapter.delta_weight(path)
        assert (delta - got).norm() ** 2 == pytest.approx(s[2:].sum().item(), rel=1e-4)
        kept, whole = kept + s[:2].sum().item(), whole + s.sum().item()
    assert made.share == pytest.approx(kept / whole, rel=1e-5)
    untouched = {name for name, _ in base.named_parameters() if ".up.weight" not in name}
    assert made.left_out.keys() == untouched
    norm = (tuned.norm.weight - base.norm.weight).norm().item()
    assert made.left_out["norm.weight"] == pytest.approx(norm)


def test_heads_and_biases_are_taken_as_they_are():
    base, tuned = TinyNet(), moved()
    targets = ["up", "down"]
    config = LoraConfig(r=8, target_modules=targets, modules_to_save=["classifier"], bias="all")
    made = extract(base, tuned, config)
    assert torch.equal(made.adapter.replaced["classifier.weight"], tuned.classifier.weight)
    assert torch.equal(made.adapter.replaced["layers.0.up.bias"], tuned.layers[0]["up"].bias)
    assert set(made.left_out) == {"embed.weight", "norm.weight"}
    assert torch.equal(base.norm.bias, TinyNet().norm.bias)
    add_adapter(base, made.adapter)
    changed = moved()
    with torch.no_grad():  # what the adapter does not hold
        changed.embed.weight.copy_(TinyNet().embed.weight)
        changed.norm.weight.copy_(TinyNet().norm.weight)
    assert largest_error(logits(base), logits(changed)) < 10 * EXACT


def test_modules_that_did_not_change_are_kept_in_full():
    made = extract(TinyNet(), TinyNet(), LoraConfig(r=2, target_modules=["up"]))
    assert set(made.kept.values()) == {1.0} and made.share == 1.0
    assert not made.adapter.delta_weight("layers.0.up").any()


def test_a_base_without_its_prefix_and_in_several_files(tmp_path):
    tuned = fine_tuned(bert, target_modules=["query"])
    tuned.save_pretrained(tmp_path / "tuned", max_shard_size="4kB")
    assert (tmp_path / "tuned/model.safetensors.index.json").is_file()
    bert().bert.save_pretrained(tmp_path / "base")
    assert not any(
        key.startswith("bert.") for key in load_file(tmp_path / "base/model.safetensors")
    )
    made = extract(tmp_path / "base", tmp_path / "tuned", LoraConfig(r=3, target_modules=["query"]))
    assert len(made.kept) == 2 and made.share == pytest.approx(1, abs=1e-6)
    assert isinstance(
        extract_adapter(bert(), tmp_path / "tuned", LoraConfig(target_modules=["query"])), Adapter
    )


def test_checkpoints_that_are_not_there(tmp_path):
    config = LoraConfig(target_modules=["up"])
    with pytest.raises(MissingFileError, match="There is no checkpoint directory"):
        extract(tmp_path / "no", TinyNet(), config)
    with pytest.raises(MissingFileError, match=re.escape("No model.safetensors and no")):
        extract(tmp_path, TinyNet(), config)
    save_file({"x": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(MissingFileError, match=re.escape("No config.json")):
        extract(TinyNet(), tmp_path, config)
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "llama", "architectures": ["NoSuchModel"]})
    )
    with pytest.raises(ConfigError, match=r"architectures=\['NoSuchModel'\]"):
        extract(TinyNet(), tmp_path, config)
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(AdapterFileError, match="expected a complete safetensors"):
        extract(tmp_path, TinyNet(), config)


def test_two_models_that_do_not_belong_together():
    config = LoraConfig(target_modules=["up"])
    with pytest.raises(AdapterMismatchError, match=r"layers\.0\.up\.weight has shape \(24, 12\)"):
        extract(TinyNet(), TinyNet(width=12), config)
    with pytest.raises(AdapterMismatchError, match=r"No layers\.2\.up\.weight in this TinyNet"):
        extract(TinyNet(), TinyNet(layers=3), config)


def test_what_cannot_be_extracted_is_refused():
    with pytest.raises(TargetError, match="Did you mean 'up'"):
        extract(TinyNet(), TinyNet(), LoraConfig(target_modules=["upp"]))
    with pytest.raises(ShapeError):
        extract(TinyNet(), TinyNet(), LoraConfig(r=9, target_modules=["up"]))
    adapted = TinyNet()
    add_adapter(adapted, LoraConfig(target_modules=["up"]))
    with pytest.raises(AdapterStateError, match="it carries adapters"):
        extract(adapted, TinyNet(), LoraConfig(target_modules=["up"]))
    with pytest.raises(AdapterStateError, match="it carries adapters"):  # through another object
        extract(nn.Sequential(adapted), nn.Sequential(TinyNet()), LoraConfig(target_modules=["up"]))


def test_a_feature_that_cannot_be_extracted_is_to_be_left_out():
    config = LoraConfig(r=2, target_modules=["up"], use_dora=True)
    with pytest.raises(
        AdapterFileError, match=r"got use_dora=True, .*\. Leave such settings out\.$"
    ):
        extract(TinyNet(), TinyNet(), config)

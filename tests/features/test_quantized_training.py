"""A recipe with a quantised base, from training to use and merging."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from lorakit import Adapter
from lorakit.errors import ConfigError, QuantizationError, TargetError
from lorakit.inference import load_for_inference
from lorakit.inference.merge_checkpoint import merge_to_checkpoint
from lorakit.layers.bitsandbytes_storage import bits_of
from lorakit.training import train
from lorakit.training.setup import prepare
from tiny_models import tokens
from tolerances import LOGITS_TOLERANCE, TOLERANCE, largest_error

NF4 = {"bits": 4, "compute_dtype": "float32"}
INT8 = {"bits": 8, "compute_dtype": "float32"}


@pytest.fixture(params=[NF4, INT8], ids=["4 bits", "8 bits"])
def quantization(request):
    return request.param


@pytest.fixture
def trained(recipe, quantization):
    """A finished run on a quantised base."""
    return train(recipe(quantization=quantization, training={"learning_rate": 0.05}))


def logits_of(loaded):
    with torch.no_grad():
        return loaded.model(**tokens()).logits


def test_a_run_trains_records_how_and_is_used_the_same_way(trained, quantization):
    settings = json.loads((trained.adapter_path / "lorakit.json").read_text())
    assert settings["quantization"]["bits"] == quantization["bits"] and "dtype" not in settings
    kind = "nf4" if quantization["bits"] == 4 else "int8"
    assert trained.injection.base_dtype == f"{kind} (float32)"
    assert f"float32 on {kind} (float32)" in (trained.run_dir / "report.md").read_text()
    loaded = load_for_inference(trained.run_dir)
    layer = loaded.model.model.layers[0].self_attn.q_proj
    assert bits_of(layer) == quantization["bits"] and layer.updates
    assert loaded.model.config.use_cache is True


def test_the_adapter_s_file_is_that_of_any_base_and_loads_on_either(trained, recipe):
    plain = train(recipe("plain"))
    one, other = Adapter.load(trained.adapter_path), Adapter.load(plain.adapter_path)
    assert one.config == other.config and one.factors.keys() == other.factors.keys()
    dense = load_for_inference(trained.run_dir, unquantized=True)
    assert not any(bits_of(module) for module in dense.model.modules())
    assert largest_error(logits_of(dense), logits_of(load_for_inference(trained.run_dir))) > 1e-4


def test_a_resumed_run_ends_in_the_same_bits(recipe, stop_after, quantization):
    made = recipe(
        quantization=quantization,
        training={"save_strategy": "steps", "save_steps": 1, "eval_strategy": "no"},
    )
    whole = train(made.model_copy(update={"output": f"{made.output}-whole"}))
    undo = stop_after(2)
    with pytest.raises(KeyboardInterrupt):
        train(made)
    undo()
    resumed = train(made, resume=True)
    one, other = Adapter.load(whole.adapter_path), Adapter.load(resumed.adapter_path)
    for path, (A, B) in one.factors.items():
        assert torch.equal(A, other.factors[path][0]) and torch.equal(B, other.factors[path][1])


@pytest.mark.parametrize("optim", ["memory_mapped_adamw", "adamw_8bit", "adamw_torch"])
def test_optimizers_that_a_cpu_has(recipe, optim):
    settings = {"optim": optim, "save_strategy": "steps", "save_steps": 2, "eval_strategy": "no"}
    result = train(recipe(quantization=NF4, training=settings))
    assert result.steps == 4
    assert f"optim: {optim}" in (result.run_dir / "recipe.yaml").read_text()
    assert not list(result.run_dir.glob(".optimizer*"))


def test_a_mapped_optimizer_trains_and_resumes_as_torch_s_does(recipe, stop_after):
    settings = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "no"}
    plain = train(recipe("plain", training={**settings, "optim": "adamw_torch"}))
    mapped = recipe("mapped", training={**settings, "optim": "memory_mapped_adamw"})
    undo = stop_after(2)
    with pytest.raises(KeyboardInterrupt):
        train(mapped)
    undo()
    resumed = train(mapped, resume=True)
    one, other = Adapter.load(plain.adapter_path), Adapter.load(resumed.adapter_path)
    for path, (A, B) in one.factors.items():
        assert torch.equal(A, other.factors[path][0]) and torch.equal(B, other.factors[path][1])


@pytest.mark.parametrize("optim", ["paged_adamw_32bit", "paged_adamw_8bit", "paged_lion_8bit"])
def test_paged_optimizers_are_refused_on_a_cpu_with_what_works(recipe, optim):
    made = recipe(training={"optim": optim})
    with pytest.raises(ConfigError, match=f"got {optim}, which needs a GPU.*memory_mapped_adamw"):
        prepare(made, lambda *event: None)


def test_checkpointing_and_small_parameters_in_float32_go_with_it(recipe, quantization):
    changes = {"training": {"gradient_checkpointing": True}, "float32_small_parameters": True}
    made = recipe(quantization=quantization, dtype="bfloat16", **changes)
    assert train(made).steps == 4


# ---- merging ----


def test_merging_makes_an_ordinary_checkpoint_with_the_adapter_s_logits(trained, tmp_path):
    expected = logits_of(load_for_inference(trained.run_dir))
    report = merge_to_checkpoint(trained.run_dir, tmp_path / "merged")
    assert report.was_quantized and not report.requantized and report.layers == 4
    config = json.loads((tmp_path / "merged/config.json").read_text())
    assert "quantization_config" not in config
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert not any(bits_of(module) for module in plain.modules())
    # The base computes in bfloat16 where the CPU has instructions for it: two layers round the
    # merged weights and their results.
    is_exact = plain.dtype == torch.float32
    tolerance = LOGITS_TOLERANCE if is_exact else 4 * TOLERANCE[plain.dtype]
    with torch.no_grad():
        assert largest_error(plain(**tokens()).logits, expected) <= tolerance


def test_merging_can_quantise_again_and_reports_the_error(trained, tmp_path, quantization):
    report = merge_to_checkpoint(trained.run_dir, tmp_path / "small", requantize=True)
    assert report.requantized and report.largest_rounding > 0 and report.relative_deviation > 1e-4
    config = json.loads((tmp_path / "small/config.json").read_text())
    assert config["quantization_config"][f"load_in_{quantization['bits']}bit"]
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "small")
    assert bits_of(again.model.layers[0].self_attn.q_proj) == quantization["bits"]


def test_merging_into_the_base_as_it_is_saved(trained, tmp_path):
    report = merge_to_checkpoint(trained.run_dir, tmp_path / "merged", unquantized=True)
    assert not report.was_quantized


def test_what_excludes_itself_is_an_error_and_writes_nothing(trained, recipe, tmp_path):
    for options in ({"dtype": "float32"}, {"unquantized": True}):
        with pytest.raises(ConfigError, match="both requantize and"):
            merge_to_checkpoint(trained.run_dir, tmp_path / "out", requantize=True, **options)
    plain = train(recipe("plain"))
    with pytest.raises(QuantizationError, match="no adapted layer is quantised"):
        merge_to_checkpoint(plain.run_dir, tmp_path / "out", requantize=True)
    assert not (tmp_path / "out").exists()


def test_gpt2_merges_back_into_its_own_orientation(recipe, tiny_gpt2_dir, tmp_path, quantization):
    changes = {"model": tiny_gpt2_dir, "lora": {"r": 2, "target_modules": ["c_attn"]}}
    result = train(recipe(quantization=quantization, **changes))
    expected = logits_of(load_for_inference(result.run_dir))
    merge_to_checkpoint(result.run_dir, tmp_path / "merged")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    # The base computes in bfloat16 where the CPU has instructions for it: two layers round the
    # merged weights and their results.
    is_exact = plain.dtype == torch.float32
    tolerance = LOGITS_TOLERANCE if is_exact else 4 * TOLERANCE[plain.dtype]
    with torch.no_grad():
        assert largest_error(plain(**tokens()).logits, expected) <= tolerance


# ---- bad input ----


def test_wrong_settings_stop_before_anything_is_written(recipe, tmp_path):
    cases = [
        ({"bits": 4, "skip_modules": ["q_porj"]}, TargetError, "q_porj"),
        (NF4 | {"skip_modules": ["q_proj"]}, None, None),
    ]
    for settings, error, message in cases:
        made = recipe(quantization=settings)
        if error is None:
            prepare(made, lambda *event: None)
        else:
            with pytest.raises(error, match=message):
                train(made)
    assert not (tmp_path / "run").exists()


def test_a_module_trained_in_full_is_left_dense_by_the_recipe(recipe):
    lora = {"r": 2, "target_modules": ["q_proj"], "modules_to_save": ["k_proj"]}
    model = prepare(recipe(quantization=NF4, lora=lora), lambda *event: None).model
    assert bits_of(model.model.layers[0].self_attn.k_proj) is None
    assert bits_of(model.model.layers[0].self_attn.v_proj) == 4

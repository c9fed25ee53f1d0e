"""A recipe with a quantized base, from training to use and merging."""

import json

import pytest
import torch

from lorakit import Adapter
from lorakit.errors import ConfigError, TargetError
from lorakit.inference import load_for_inference
from lorakit.layers.bitsandbytes_storage import bits_of
from lorakit.training import train
from lorakit.training.influence import blame
from lorakit.training.setup import prepare
from tiny_models import tokens
from tolerances import largest_error

NF4 = {"bits": 4, "compute_dtype": "float32"}
INT8 = {"bits": 8, "compute_dtype": "float32"}


@pytest.fixture(params=[NF4, INT8], ids=["4 bits", "8 bits"])
def quantization(request):
    return request.param


@pytest.fixture
def trained(recipe, quantization):
    """A finished run on a quantized base."""
    return train(recipe(quantization=quantization, training={"learning_rate": 0.05}))


def logits_of(loaded):
    with torch.no_grad():
        return loaded.model(**tokens()).logits


def stopped_and_resumed(recipe, stop_after):
    """Stop a run after two steps and resume it; return its result."""
    with stop_after(2):
        train(recipe)
    return train(recipe, resume=True)


def assert_same_factors(result, expected):
    one, other = Adapter.load(result.adapter_path), Adapter.load(expected.adapter_path)
    for path, (A, B) in one.factors.items():
        assert torch.equal(A, other.factors[path][0]) and torch.equal(B, other.factors[path][1])


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
    resumed = stopped_and_resumed(made, stop_after)
    assert_same_factors(whole, resumed)


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
    resumed = stopped_and_resumed(mapped, stop_after)
    assert_same_factors(plain, resumed)


@pytest.mark.parametrize("optim", ["paged_adamw_32bit", "paged_adamw_8bit", "paged_lion_8bit"])
def test_paged_optimizers_are_refused_on_a_cpu_with_what_works(recipe, optim):
    made = recipe(training={"optim": optim})
    with pytest.raises(ConfigError, match=f"got {optim}, which needs a GPU.*memory_mapped_adamw"):
        prepare(made, lambda *event: None)


def test_checkpointing_and_small_parameters_in_float32_go_with_it(recipe, quantization):
    changes = {"training": {"gradient_checkpointing": True}, "float32_small_parameters": True}
    made = recipe(quantization=quantization, dtype="bfloat16", **changes)
    assert train(made).steps == 4


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


def test_a_second_round_starts_on_the_same_quantized_base(trained, recipe, quantization):
    start = {"start_from": str(trained.run_dir), "quantization": quantization, "lora": {}}
    setup = prepare(recipe("second", **start), lambda name, payload: None)
    assert len(setup.injection.notes) == 1  # it says where it starts, and nothing differs
    with torch.no_grad():
        logits = setup.model.eval()(**tokens()).logits
    loaded = load_for_inference(trained.run_dir, dtype="float32")  # of the products
    assert torch.equal(logits, logits_of(loaded))
    other = {**start, "quantization": INT8 if quantization is NF4 else NF4}
    notes = prepare(recipe("second", **other), lambda name, payload: None).injection.notes
    assert notes[1].startswith("The adapter was trained on a base in ")
    rows = blame(trained.run_dir).rows
    assert sum(abs(row.share) for row in rows) == pytest.approx(1)

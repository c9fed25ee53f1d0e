import pytest
import torch

from lorakit.errors import MissingFileError
from lorakit.training import dtype_choice
from lorakit.training.dtype_choice import (
    AUTOCAST,
    BFLOAT16,
    FLOAT32,
    SAVED,
    candidates,
    fastest,
)

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def multiplies_bfloat16(monkeypatch):
    """Let every device have instructions for bfloat16."""
    monkeypatch.setattr(dtype_choice, "has_dtype", lambda dtype, device: True)


@pytest.fixture
def saved_in_bfloat16(tiny_llama_dir, tmp_path):
    """Directory of a base in bfloat16."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_llama_dir, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "bfloat16")
    return str(tmp_path / "bfloat16")


def test_a_float32_checkpoint_keeps_its_weights(recipe):
    found = candidates(recipe(dtype="auto"), CPU)
    assert found.precisions == (FLOAT32, AUTOCAST)
    assert found.decided is None


def test_a_bfloat16_checkpoint_needs_no_float32_base(recipe, saved_in_bfloat16):
    found = candidates(recipe(dtype="auto", model=saved_in_bfloat16), CPU)
    assert found.precisions == (FLOAT32, BFLOAT16)


def test_a_cpu_without_instructions_for_bfloat16_takes_float32(recipe, monkeypatch):
    monkeypatch.setattr(dtype_choice, "has_dtype", lambda dtype, device: False)
    choice = candidates(recipe(dtype="auto"), CPU).decided
    assert choice.precision == FLOAT32
    assert choice.note == "dtype: float32, because this CPU has no instructions for bfloat16"


def test_a_gpu_that_multiplies_bfloat16_is_not_measured(recipe, saved_in_bfloat16):
    choice = candidates(recipe(dtype="auto"), torch.device("cuda")).decided
    assert choice.note == (
        "dtype: float32 with products in bfloat16, because this GPU multiplies bfloat16 fastest"
    )
    other = recipe(dtype="auto", model=saved_in_bfloat16)
    assert candidates(other, torch.device("cuda")).decided.precision == BFLOAT16


def test_another_accelerator_keeps_the_saved_dtype(recipe):
    choice = candidates(recipe(dtype="auto"), torch.device("mps")).decided
    assert choice.note == "dtype: as saved, because speeds on mps are not known"


def test_a_large_base_is_not_loaded_to_measure_it(recipe, monkeypatch):
    monkeypatch.setattr(dtype_choice, "_LARGE_PARAMETERS", 100)
    choice = candidates(recipe(dtype="auto"), CPU).decided
    assert choice.precision == AUTOCAST
    assert "multiplies bfloat16 fastest" in choice.note


def test_a_sharded_base_is_not_measured(recipe):
    sharded = recipe(dtype="auto", training={"fsdp": True})
    assert candidates(sharded, CPU).decided.precision == AUTOCAST


@pytest.mark.parametrize("key", ["bf16", "fp16"])
def test_what_training_says_on_products_stands(recipe, key):
    choice = candidates(recipe(dtype="auto", training={key: True}), CPU).decided
    assert choice.precision == SAVED
    assert choice.note == f"dtype: as saved, because training.{key} sets what products run in"


def test_a_quantized_base_has_its_compute_dtype(recipe):
    choice = candidates(recipe(dtype="auto", quantization={"bits": 4}), CPU).decided
    assert choice.precision == SAVED
    assert "quantization.compute_dtype" in choice.note


def test_a_base_that_does_not_exist_is_named(recipe, tmp_path):
    with pytest.raises(MissingFileError, match="nowhere"):
        candidates(recipe(dtype="auto", model=str(tmp_path / "nowhere")), CPU)


@pytest.mark.parametrize(
    ("seconds", "precision", "note"),
    [
        (0.5, BFLOAT16, "dtype: bfloat16, 2.0 times as fast as float32 on this machine"),
        (
            2.0,
            FLOAT32,
            "dtype: float32, because bfloat16 is 0.50 times as fast on this machine, less than 1.5",
        ),
        (
            0.8,
            FLOAT32,
            "dtype: float32, because bfloat16 is 1.25 times as fast on this machine, less than 1.5",
        ),
    ],
)
def test_bfloat16_has_to_be_clearly_quicker(seconds, precision, note):
    choice = fastest({FLOAT32: 1.0, BFLOAT16: seconds})
    assert (choice.precision, choice.note) == (precision, note)
    assert choice.facts()["step_cpu_s"] == {"float32": 1.0, "bfloat16": seconds}


def test_autocast_is_named_by_what_it_does():
    assert fastest({FLOAT32: 1.5, AUTOCAST: 1.0}).note == (
        "dtype: float32 with products in bfloat16, 1.5 times as fast as float32 on this machine"
    )
    assert fastest({FLOAT32: 1.0, AUTOCAST: 2.0}).note == (
        "dtype: float32, because with products in bfloat16 it is 0.50 times as fast on this "
        "machine, less than 1.5"
    )


def test_a_choice_is_recorded_in_the_recipe(recipe):
    recorded = AUTOCAST.apply_to(recipe(dtype="auto"))
    assert (recorded.dtype, recorded.training["bf16"]) == ("float32", True)
    recorded = FLOAT32.apply_to(recipe(dtype="auto"))
    assert (recorded.dtype, recorded.training.get("bf16", False)) == ("float32", False)

"""What the operations on adapters write, PEFT loads with the same outputs, and the other way."""

import peft
import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file

from lorakit import (
    Adapter,
    LoraConfig,
    add_adapter,
    extract_adapter,
    load_adapter,
    load_run,
    merge_and_unload,
)
from lorakit.adapters import (
    load_adapters,
    negated_adapter,
    portable_adapter,
    resize_adapter,
    save_adapters,
    summed_adapters,
)
from lorakit.errors import MissingFileError
from tiny_models import gpt2, llama, logits, randomize_
from tolerances import LOGITS_TOLERANCE, largest_error

RANKS = {
    "r": 4,
    "lora_alpha": 7,
    "rank_pattern": {"layers.0.self_attn.q_proj": 2, "v_proj": 3},
    "alpha_pattern": {"v_proj": 5},
}
CASES = {
    "Linear": (llama, {"target_modules": ["q_proj", "down_proj"], "use_rslora": True}),
    "ranks": (llama, {"target_modules": ["q_proj", "v_proj"], **RANKS}),
    "Conv1D": (gpt2, {"target_modules": ["c_attn", "c_proj"], "lora_alpha": 3}),
}
OPERATIONS = {
    "portable": portable_adapter,
    "resized": lambda adapter: resize_adapter(adapter, 6).adapter,
    "reduced": lambda adapter: resize_adapter(adapter, 1).adapter,
    "negated": negated_adapter,
    "summed": lambda adapter: summed_adapters(adapter, adapter),
    "patterns": lambda adapter: summed_adapters(adapter, half_of(adapter)),
}


def half_of(adapter):
    """Return an adapter of every second module."""
    kept = dict(list(adapter.factors.items())[::2])
    config = adapter.config.model_copy(update={"target_modules": tuple(kept)})
    return Adapter(config, kept, {}, adapter.embeddings, {}, adapter.base_model)


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("case", CASES)
def test_peft_loads_the_results_of_operations(case, operation, tmp_path):
    build, options = CASES[case]
    model = build()
    add_adapter(model, LoraConfig(**options))
    made = OPERATIONS[operation](Adapter.from_model(randomize_(model, scale=0.1)))
    made.save(tmp_path)
    ours = build()
    add_adapter(ours, made)
    theirs = PeftModel.from_pretrained(build(), tmp_path).eval()
    assert largest_error(logits(theirs), logits(ours)) < LOGITS_TOLERANCE
    assert largest_error(logits(ours), logits(build())) > 100 * LOGITS_TOLERANCE


@pytest.mark.parametrize("case", ["Linear", "Conv1D"])
def test_peft_loads_what_was_extracted_from_a_full_fine_tune(case, tmp_path):
    build, options = CASES[case]
    tuned = build()
    add_adapter(tuned, LoraConfig(r=3, **options))
    tuned = merge_and_unload(randomize_(tuned, scale=0.1))
    extract_adapter(build(), tuned, LoraConfig(r=3, **options)).save(tmp_path)
    theirs = PeftModel.from_pretrained(build(), tmp_path).eval()
    assert largest_error(logits(theirs), logits(tuned)) < 2 * LOGITS_TOLERANCE
    assert largest_error(logits(tuned), logits(build())) > 100 * LOGITS_TOLERANCE


def test_a_pickle_as_peft_used_to_write_it(tmp_path):
    theirs = get_peft_model(llama(), peft.LoraConfig(target_modules=["q_proj"])).eval()
    randomize_(theirs).save_pretrained(tmp_path)
    weights = tmp_path / "adapter_model.safetensors"
    torch.save(load_file(weights), tmp_path / "adapter_model.bin")
    weights.unlink()
    ours = llama()
    with pytest.raises(MissingFileError, match="--allow-pickle"):
        load_adapter(ours, tmp_path)
    load_adapter(ours, tmp_path, allow_pickle=True)
    assert largest_error(logits(ours), logits(theirs)) < LOGITS_TOLERANCE


def test_folders_of_several_adapters_go_both_ways(tmp_path):
    config = peft.LoraConfig(target_modules=["q_proj"])
    theirs = get_peft_model(llama(), config).eval()
    theirs.add_adapter("topic", peft.LoraConfig(target_modules=["v_proj"], r=3))
    for number, name in enumerate(("default", "topic")):
        theirs.set_adapter(name)
        randomize_(theirs, seed=number)
    theirs.save_pretrained(tmp_path / "theirs")
    ours = llama()
    assert set(load_adapters(ours, tmp_path / "theirs")) == {"default", "topic"}
    assert largest_error(logits(ours), logits(theirs)) < LOGITS_TOLERANCE
    save_adapters(ours, tmp_path / "ours")
    again = PeftModel.from_pretrained(llama(), tmp_path / "ours").eval()
    again.load_adapter(tmp_path / "ours" / "topic", "topic")
    for name in ("default", "topic"):
        again.set_adapter(name)
        theirs.set_adapter(name)
        assert largest_error(logits(again), logits(theirs)) < LOGITS_TOLERANCE


def test_the_lines_of_a_model_card_load_the_adapter(done, tiny_llama_dir):
    directory = done[0].adapter_path
    card = (directory / "README.md").read_text(encoding="utf-8")
    lines = card.split("```python\n")[1].split("\n```")[0]
    names = {}
    exec(lines.replace("BASE", tiny_llama_dir).replace("ADAPTER", str(directory)), names)
    ours = load_run(done[0].run_dir)
    ids = names["tokenizer"]("a text", return_tensors="pt").input_ids
    with torch.no_grad():
        theirs = names["model"].eval()(ids).logits
        expected = ours.loaded.model(ids).logits
    assert largest_error(theirs, expected) < LOGITS_TOLERANCE

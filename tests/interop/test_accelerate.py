"""Models under accelerate's hooks: the adapter must act, learn and come out again.

A hook puts a `forward` on the instance that hides the class's (FACTS, section 5), and an offloading
hook keeps the weights elsewhere and loads them again for each pass.
"""

import accelerate
import pytest
import torch
from accelerate.hooks import remove_hook_from_submodules

from lorakit import (
    LoraConfig,
    add_adapter,
    initialize_from_data,
    load_adapter,
    merge_adapters,
    merge_and_unload,
    save_adapter,
    unload,
)
from lorakit.errors import AdapterStateError, TargetError
from lorakit.injection import set_adapter
from tiny_models import distilbert, gpt2, llama, logits, randomize_, roberta, tokens, train_steps
from tolerances import LOGITS_TOLERANCE, largest_error


def force_hooks(model, folder):
    return accelerate.dispatch_model(
        model, device_map={"": "cpu"}, main_device="cpu", force_hooks=True
    )


def cpu_offload(model, folder):
    return accelerate.cpu_offload(model, execution_device=torch.device("cpu"))


def disk_offload(model, folder):
    return accelerate.disk_offload(model, str(folder / "weights"), execution_device="cpu")


def parts_with_weights(model):
    return [name for name, child in model.named_children() if list(child.parameters())]


def backbone_in_memory_head_on_disk(model, folder):
    device_map = dict.fromkeys(dict(model.named_children()), "cpu")
    device_map[parts_with_weights(model)[-1]] = "disk"
    return accelerate.dispatch_model(
        model, device_map=device_map, main_device="cpu", offload_dir=str(folder / "weights")
    )


def backbone_on_disk_head_in_memory(model, folder):
    device_map = dict.fromkeys(dict(model.named_children()), "cpu")
    device_map[parts_with_weights(model)[0]] = "disk"
    return accelerate.dispatch_model(
        model, device_map=device_map, main_device="cpu", offload_dir=str(folder / "weights")
    )


PLACEMENTS = [
    force_hooks,
    cpu_offload,
    disk_offload,
    backbone_in_memory_head_on_disk,
    backbone_on_disk_head_in_memory,
]
OFFLOADED = [cpu_offload, disk_offload]


def adapted(build, **options):
    config = {"r": 2, "bias": "lora_only"} | options
    if build in (distilbert, roberta):
        config["task_type"] = "SEQ_CLS"
    return LoraConfig(**config)


def in_memory_logits(build, config, seed):
    """Return what the same adapter gives on a model without hooks."""
    model = build()
    add_adapter(model, config)
    return logits(randomize_(model, seed=seed))


@pytest.fixture(params=PLACEMENTS, ids=lambda p: p.__name__)
def placed(request, tmp_path):
    return lambda model: request.param(model, tmp_path)


@pytest.mark.parametrize("build", [distilbert, roberta, gpt2])
def test_the_adapter_acts_learns_and_comes_out(build, placed):
    base = logits(build())
    model = placed(build())
    assert torch.equal(logits(model), base)
    config = adapted(build)
    add_adapter(model, config)
    assert torch.equal(logits(model), base)
    expected = in_memory_logits(build, config, seed=3)
    assert torch.equal(logits(randomize_(model, seed=3)), expected)
    set_adapter(model, None)
    assert torch.equal(logits(model), base)
    set_adapter(model, "default")
    assert torch.equal(logits(model), expected)
    unload(model)
    assert torch.equal(logits(model), base)


@pytest.mark.parametrize("build", [roberta, llama])
def test_training_is_that_of_a_model_in_memory(build, placed):
    torch.manual_seed(0)
    plain = build()
    add_adapter(plain, adapted(build))
    expected = train_steps(plain, steps=2)
    torch.manual_seed(0)
    model = placed(build())
    add_adapter(model, adapted(build))
    assert train_steps(model, steps=2) == pytest.approx(expected, rel=1e-5)
    assert largest_error(logits(model), logits(plain)) < LOGITS_TOLERANCE


@pytest.mark.parametrize("build", [distilbert, roberta, gpt2])
def test_a_model_placed_after_its_adapter_was_added(build, placed):
    """The hooks are on the updates too, which must be called for them to load their factors."""
    targets = {gpt2: ["c_attn", "wte"], roberta: ["query", "word_embeddings"]}.get(build)
    model = build()
    add_adapter(model, adapted(build, target_modules=targets))
    expected = logits(randomize_(model))
    assert not torch.equal(expected, logits(build()))
    model = placed(model)
    assert torch.equal(logits(model), expected)
    unload(model)
    assert torch.equal(logits(model), logits(build()))


def test_an_adapter_is_saved_and_loaded_under_hooks(placed, tmp_path):
    model = placed(roberta())
    add_adapter(model, adapted(roberta))
    expected = logits(randomize_(model))
    save_adapter(model, tmp_path / "adapter")
    plain = roberta()
    load_adapter(plain, tmp_path / "adapter")
    assert torch.equal(logits(plain), expected)
    unload(model)
    load_adapter(model, tmp_path / "adapter")
    assert torch.equal(logits(model), expected)


def test_merging_under_hooks_without_offloading(tmp_path):
    model = force_hooks(roberta(), tmp_path)
    add_adapter(model, adapted(roberta))
    expected = logits(randomize_(model))
    merge_and_unload(model)
    assert largest_error(logits(model), expected) < LOGITS_TOLERANCE
    assert not [n for n, _ in model.named_parameters() if "lora" in n or "trained" in n]


@pytest.mark.parametrize("merge", [merge_adapters, merge_and_unload])
@pytest.mark.parametrize("place", OFFLOADED)
def test_merging_into_offloaded_weights_is_refused(place, merge, tmp_path):
    # accelerate would load the unmerged weights again on the next pass.
    model = place(llama(), tmp_path)
    add_adapter(model, adapted(llama))
    expected = logits(randomize_(model))
    with pytest.raises(AdapterStateError) as caught:
        merge(model)
    assert str(caught.value) == (
        "Cannot merge into model.layers.0.self_attn.q_proj: accelerate offloads its weights, "
        "expected them in memory. Load the base without offloading."
    )
    assert torch.equal(logits(model), expected)


@pytest.mark.parametrize("place", OFFLOADED)
def test_biases_of_offloaded_layers_without_an_update_are_refused(place, tmp_path):
    model = place(distilbert(), tmp_path)
    base = logits(model)
    with pytest.raises(TargetError) as caught:
        add_adapter(model, adapted(distilbert, target_modules=["q_lin"], bias="all"))
    assert str(caught.value) == (
        "Cannot train the bias of distilbert.embeddings.LayerNorm: accelerate offloads its "
        "weights, expected them in memory. Use bias='none' or 'lora_only', or load the base "
        "without offloading."
    )
    assert torch.equal(logits(model), base)
    assert not [n for n, _ in model.named_modules() if "trained_copies" in n]


def test_all_biases_under_hooks_without_offloading(tmp_path):
    model = force_hooks(distilbert(), tmp_path)
    config = adapted(distilbert, target_modules=["q_lin"], bias="all")
    add_adapter(model, config)
    expected = in_memory_logits(distilbert, config, seed=3)
    assert torch.equal(logits(randomize_(model, seed=3)), expected)


def test_hooks_taken_off_before_and_after(tmp_path):
    model = force_hooks(llama(), tmp_path)
    base = logits(model)
    remove_hook_from_submodules(model)  # leaves a bound forward on every instance
    add_adapter(model, adapted(llama))
    acting = logits(randomize_(model))
    assert not torch.equal(acting, base)
    unload(model)
    assert torch.equal(logits(model), base)

    model = force_hooks(llama(), tmp_path)
    add_adapter(model, adapted(llama))
    # Hooked layers compute one by one, others in groups: the same up to rounding.
    torch.testing.assert_close(logits(randomize_(model)), acting)
    remove_hook_from_submodules(model)
    torch.testing.assert_close(logits(model), acting)
    unload(model)
    assert torch.equal(logits(model), base)


def test_a_copied_head_drops_the_hooks_and_not_the_offloaded_weights(tmp_path):
    model = cpu_offload(roberta(), tmp_path)
    add_adapter(model, adapted(roberta))
    trained = model.classifier.trained_copies["default"]
    for part in trained.modules():
        assert not {"_hf_hook", "_old_forward"} & set(vars(part))
        assert not any(p.is_meta for p in part.parameters())
    assert model.classifier.dense.weight.is_meta


def test_from_pretrained_with_a_device_map(tmp_path):
    from transformers import AutoModelForCausalLM

    llama().save_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, device_map={"": "cpu"})
    base = logits(model)
    add_adapter(model, adapted(llama))
    assert torch.equal(logits(model), base)
    train_steps(model)
    assert not torch.equal(logits(model), base)
    unload(model)
    assert torch.equal(logits(model), base)


@pytest.mark.parametrize("init", ["pissa", "olora", "eva", "lora_ga"])
def test_an_update_initialized_from_the_weight_or_from_data(placed, init):
    found = []
    for place in (lambda model: model, placed):
        model = place(llama())
        torch.manual_seed(0)
        add_adapter(model, LoraConfig(r=2, init_lora_weights=init))
        if init in ("eva", "lora_ga"):
            initialize_from_data(model, [{**tokens(), "labels": tokens()["input_ids"]}])
        found.append(model)
    assert torch.equal(logits(found[1]), logits(llama()))
    start, expected = (model.model.layers[1].mlp.down_proj.updates["default"] for model in found)
    assert torch.equal(start.lora_A, expected.lora_A) and torch.equal(start.lora_B, expected.lora_B)

"""Gradient checkpointing trains the same adapters, those below every checkpoint too, for less."""

import pytest
import torch
from safetensors.torch import load_file

from allocations import allocations_of
from lorakit import LoraConfig, add_adapter
from lorakit.training import train
from lorakit.training.setup import prepare
from tiny_models import llama, randomize_, tokens
from tolerances import largest_error

WAYS = {
    "default": {},
    "reentrant": {"use_reentrant": True},
    "non-reentrant": {"use_reentrant": False},
    "every second layer": {"every_n_layers": 2},
    "all but attention": {"selective": True},
}


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable`:FutureWarning")  # TRL's own
def test_a_recipes_run_gives_the_same_adapter(recipe):
    def run(output, training):
        short = {"max_steps": 3, "eval_strategy": "no", **training}
        lora = {"r": 2, "lora_dropout": 0.2, "target_modules": "all-linear"}
        made = train(recipe(output, lora=lora, training=short))
        return load_file(made.adapter_path / "adapter_model.safetensors")

    plain = run("plain", {})
    for name, way in WAYS.items():
        options = {"gradient_checkpointing_kwargs": way} if way else {}
        saving = run(name, {"gradient_checkpointing": True, **options})
        assert saving.keys() == plain.keys()
        for key, tensor in plain.items():
            # The first pass of a reentrant checkpoint knows of no gradients, and may add up in
            # another order; another mask would differ by far more.
            most = 1e-3 if name == "reentrant" else 0.0
            assert largest_error(saving[key], tensor) <= most, (name, key)
    assert all(tensor.any() for key, tensor in plain.items() if "lora_B" in key)


@pytest.mark.parametrize(
    ("task", "targets"),
    [
        ("CAUSAL_LM", ["embed_tokens", "q_proj"]),
        ("SEQ_2_SEQ_LM", ["q", "wo"]),
        ("SEQ_2_SEQ_LM", ["embed_tokens", "wi"]),
    ],
)
def test_a_step_of_the_trainer_has_the_same_gradients(
    recipe, tiny_t5_dir, summary_parquet, task, targets
):
    """An adapted embedding, whose output is no leaf; two stacks, where one feeds the other."""
    changes = {"task": task, "lora": {"r": 2, "lora_dropout": 0.2, "target_modules": targets}}
    if task == "SEQ_2_SEQ_LM":
        changes |= {"model": tiny_t5_dir, "data": {"train": summary_parquet}}
    trainer = prepare(recipe(**changes), lambda name, payload: None).build_trainer()
    model = randomize_(trainer.model, scale=0.1)
    batch = next(iter(trainer.get_train_dataloader()))

    def gradients():
        model.zero_grad()
        torch.manual_seed(1)
        trainer.training_step(model, dict(batch), num_items_in_batch=9)
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}

    plain = gradients()
    assert all(gradient.any() for gradient in plain.values())
    for reentrant in (True, False):
        model.activation_checkpointing_enable({"use_reentrant": reentrant})
        saving = gradients()
        for name, gradient in plain.items():
            # Reentrant, what the decoder's layers give the encoder is added in another order too.
            most = 1e-3 if reentrant else 0.0
            assert largest_error(saving[name], gradient) <= most, (reentrant, name)


@pytest.mark.parametrize("way", [{}, {"use_reentrant": False}, {"use_reentrant": True}], ids=str)
def test_layers_below_the_lowest_adapter_have_no_backward(recipe, way):
    options = {"gradient_checkpointing_kwargs": way} if way else {}
    training = {"max_steps": 1, "gradient_checkpointing": True, **options}
    lora = {"r": 2, "layers_to_transform": [1]}
    trainer = prepare(
        recipe(lora=lora, training=training), lambda name, payload: None
    ).build_trainer()
    wanted = []
    trainer.model.model.layers[0].register_forward_hook(
        lambda layer, args, output: wanted.append(output.requires_grad and layer.training)
    )
    trainer.train()
    assert any(wanted) == bool(way.get("use_reentrant"))


@pytest.mark.parametrize("reentrant", [False, True], ids=["non-reentrant", "reentrant"])
def test_less_is_alive_at_once(reentrant):
    model = llama(num_hidden_layers=8)
    add_adapter(model, LoraConfig(r=2, lora_dropout=0.1, target_modules="all-linear"))
    randomize_(model).train()
    inputs = tokens(model, rows=8, length=32)

    def step():
        model(**inputs, use_cache=False).logits.sum().backward()

    step()
    plain = allocations_of(step).peak
    model.activation_checkpointing_enable({"use_reentrant": reentrant})
    step()
    assert allocations_of(step).peak < plain / 2

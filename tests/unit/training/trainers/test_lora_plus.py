"""LoRA+: every lora_B has its own learning rate, and nothing else changes."""

import pytest
import torch

from lorakit import LoraConfig, add_adapter
from lorakit.training.setup import prepare
from lorakit.training.trainers.lora_plus import split_groups
from tiny_models import llama


@pytest.fixture
def trainer(recipe, tiny_llama_dir, prompt_jsonl):
    def build(lora=None, **training):
        lora = {"r": 2, "target_modules": ["q_proj", "embed_tokens"], **(lora or {})}
        made = recipe(
            task="CAUSAL_LM",
            model=tiny_llama_dir,
            data={"train": prompt_jsonl},
            lora=lora,
            training={"learning_rate": 1e-3, "lr_scheduler_type": "constant"} | training,
        )
        return prepare(made, lambda name, payload: None).build_trainer()

    return build


def rates(made):
    names = {id(p): name for name, p in made.model.named_parameters()}
    return {
        names[id(p)]: (group["lr"], group["weight_decay"])
        for group in made.optimizer.param_groups
        for p in group["params"]
    }


@pytest.mark.parametrize("optim", ["adamw_torch_fused", "memory_mapped_adamw", "sgd"])
def test_each_lora_b_learns_at_the_ratio(trainer, optim):
    made = trainer(lora_plus_ratio=16, weight_decay=0.1, optim=optim)
    made.create_optimizer()
    made.create_optimizer()  # the Trainer may ask again; the rates are multiplied once
    found = rates(made)
    trained = {name for name, p in made.model.named_parameters() if p.requires_grad}
    assert found.keys() == trained and len(trained) == 6
    for name, (rate, decay) in found.items():
        assert rate == pytest.approx(16e-3 if name.endswith("lora_B") else 1e-3)
        assert decay == 0.1
    made.train()
    logged = [row["learning_rate"] for row in made.state.log_history if "learning_rate" in row]
    assert logged and set(logged) == {1e-3}


def test_without_a_ratio_there_is_one_rate(trainer):
    made = trainer()
    made.create_optimizer()
    assert {rate for rate, _ in rates(made).values()} == {1e-3}


def test_one_step_of_sgd_moves_lora_b_that_much_further():
    moved = []
    for ratio in (1.0, 8.0):
        model = llama()
        torch.manual_seed(0)
        add_adapter(model, LoraConfig(r=2, target_modules=["q_proj"]))
        trained = [p for p in model.parameters() if p.requires_grad]
        before = [p.detach().clone() for p in trained]
        optimizer = torch.optim.SGD(split_groups([{"params": trained, "lr": 0.1}], model, ratio))
        ids = torch.arange(8)[None]
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        moved.append([after.detach() - old for after, old in zip(trained, before, strict=True)])
    names = [n for n, p in model.named_parameters() if p.requires_grad]
    for name, one, other in zip(names, *moved, strict=True):
        expected = one * (8 if name.endswith("lora_B") else 1)
        assert torch.allclose(other, expected, rtol=1e-4, atol=1e-7)
        assert one.any() == name.endswith("lora_B")


def test_a_frozen_lora_a_has_no_state_and_stays(trainer):
    made = trainer(lora={"freeze_lora_a": True, "target_modules": ["q_proj"]}, lora_plus_ratio=2)
    before = {n: p.detach().clone() for n, p in made.model.named_parameters() if "lora_" in n}
    made.train()
    with_state = {id(p) for p in made.optimizer.state}
    for name, parameter in made.model.named_parameters():
        if "lora_" in name:
            is_B = name.endswith("lora_B")
            assert (id(parameter) in with_state) == parameter.requires_grad == is_B
            assert torch.equal(parameter, before[name]) != is_B

"""Gradients, their buffers and the optimizer's state exist for the adapter alone."""

import pytest
import torch

from allocations import allocations_of
from lorakit import LoraConfig, add_adapter
from lorakit.training.setup import prepare
from tiny_models import llama, randomize_, tokens
from tolerances import largest_error

TASKS = {
    "CAUSAL_LM": ("tiny_llama_dir", "prompt_jsonl"),
    "SEQ_2_SEQ_LM": ("tiny_t5_dir", "summary_parquet"),
    "SEQ_CLS": ("tiny_distilbert_dir", "cls_csv"),
    "TOKEN_CLS": ("tiny_bert_dir", "ner_jsonl"),
}


@pytest.fixture
def trainer(recipe, request):
    """Builds a recipe's trainer."""

    def build(task="CAUSAL_LM", **changes):
        model, data = (request.getfixturevalue(name) for name in TASKS[task])
        lora = {"r": 2, "target_modules": "all-linear"}
        values = {"task": task, "model": model, "data": {"train": data}, "lora": lora}
        made = recipe(**values | changes)
        return prepare(made, lambda name, payload: None).build_trainer()

    return build


@pytest.mark.parametrize("task", TASKS)
def test_base_parameters_have_no_gradient_and_no_optimizer_state(trainer, task):
    made = trainer(task)
    seen = []

    def look(*ignored):
        seen.append([n for n, p in made.model.named_parameters() if p.grad is not None])

    made.create_optimizer()
    made.optimizer.register_step_pre_hook(look)
    made.train()
    names = {id(parameter): name for name, parameter in made.model.named_parameters()}
    with_state = {names[id(parameter)] for parameter in made.optimizer.state}
    in_groups = {names[id(p)] for g in made.optimizer.param_groups for p in g["params"]}
    trained = {name for name, p in made.model.named_parameters() if p.requires_grad}
    adapter_names = {name for name in trained if ".updates." in name or ".trained_copies." in name}
    assert len(seen) == made.state.global_step > 0
    assert set(seen[0]) == with_state == in_groups == trained == adapter_names
    assert len(adapter_names) < len(names)


def test_no_buffer_of_the_size_of_a_base_weight_is_made():
    model = llama(hidden_size=256)
    add_adapter(model, LoraConfig(r=2, lora_dropout=0.1, target_modules="all-linear"))
    randomize_(model, scale=0.01).train()
    inputs = tokens(model, rows=1, length=4)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], fused=True)

    def step():
        model(**inputs, use_cache=False).logits.sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    smallest = 4 * min(
        module.weight.numel() for module in model.model.layers[0].self_attn.children()
    )
    made = allocations_of(step)
    assert made.largest < smallest / 4 and made.peak < smallest
    model.requires_grad_(True)
    assert allocations_of(step).largest >= smallest, "the measure must see what it is to forbid"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_recipe_trains_with_the_fused_adamw(trainer, dtype):
    made = trainer(dtype=dtype)
    made.create_optimizer()
    assert made.args.optim == "adamw_torch_fused"
    assert type(made.optimizer) is torch.optim.AdamW and made.optimizer.defaults["fused"]
    factors = {p.dtype for group in made.optimizer.param_groups for p in group["params"]}
    assert factors == {torch.float32}


def test_fused_steps_are_those_of_the_plain_formula(trainer):
    results = []
    for training in ({"optim": "adamw_torch"}, {}):
        made = trainer(training={**training, "learning_rate": 1e-2, "weight_decay": 0.1})
        made.create_optimizer()
        if training:
            made.optimizer.param_groups[0]["foreach"] = False
        made.train()
        results.append([p.detach() for p in made.model.parameters() if p.requires_grad])
    for one, other in zip(*results, strict=True):
        assert largest_error(other, one) < 1e-4

import os

import pytest
import torch
from torch import nn

from lorakit.distributed.sharding import (
    check_sharding,
    gather_optimizer_state,
    require_shardable,
    sharding_embeddings_once,
)
from lorakit.errors import ConfigError
from lorakit.training.arguments import batch_notes
from tiny_models.architectures import bert, gpt2


def message(training):
    with pytest.raises(ConfigError) as caught:
        check_sharding(training)
    return str(caught.value)


def test_one_process_cannot_shard():
    assert message({"fsdp": True}) == (
        "Cannot shard the model: training.fsdp is true in one process, expected several (torchrun "
        "--nproc-per-node 2 -m lorakit train ...). docs/scaling.md shows what works."
    )


def test_all_problems_are_reported_together():
    text = message(
        {
            "fsdp": True,
            "fsdp_config": {"version": 1, "cpu_offload": True, "reshard_after_froward": False},
            "optim": "memory_mapped_adamw",
        }
    )
    for part in (
        "version is 1, expected 2",
        "has 'cpu_offload', expected one of version,",
        "Did you mean 'reshard_after_forward'",
        "optim is memory_mapped_adamw",
    ):
        assert part in text


def test_a_configuration_without_its_switch():
    assert "fsdp_config is given without training.fsdp=true" in message({"fsdp_config": {"a": 1}})
    check_sharding({"fsdp": False})


@pytest.mark.parametrize(
    ("variables", "part"),
    [
        ({"FSDP_VERSION": "1"}, "expected --fsdp_version 2"),
        ({"FSDP_ACTIVATION_CHECKPOINTING": "true"}, "activation_checkpointing=true"),
        ({"FSDP_OFFLOAD_PARAMS": "true"}, "expected none offloaded"),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "expected --use_fsdp or neither"),
    ],
)
def test_what_the_launcher_asks_for(variables, part, monkeypatch):
    for name, value in ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"} | variables).items():
        monkeypatch.setenv(name, value)
    assert part in message({})


def test_each_process_reads_the_base(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")
    check_sharding({})
    assert os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] == "false"


def test_shared_weights(tiny_t5_dir, tiny_gpt2_dir):
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    require_shardable(AutoModelForCausalLM.from_pretrained(tiny_gpt2_dir))  # a tied output layer
    with pytest.raises(ConfigError, match=r"encoder\.embed_tokens.* share a weight"):
        require_shardable(AutoModelForSeq2SeqLM.from_pretrained(tiny_t5_dir))


@pytest.mark.parametrize(("build", "left"), [(bert, ["BertLayer"]), (gpt2, ["GPT2Block"])])
def test_a_module_around_the_input_embeddings_is_not_sharded_beside_them(build, left):
    model = build()
    before = model._no_split_modules
    with sharding_embeddings_once(model):
        assert model._no_split_modules == left
    assert model._no_split_modules == before


def test_a_whole_state_is_a_copy_of_structure():
    optimizer = torch.optim.AdamW(nn.Linear(2, 2).parameters())
    state = gather_optimizer_state(optimizer.state_dict())
    assert state["param_groups"] == optimizer.state_dict()["param_groups"]


def test_idle_gpus_are_reported(monkeypatch):
    from types import SimpleNamespace

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    arguments = SimpleNamespace(
        per_device_train_batch_size=8, gradient_accumulation_steps=1, device=torch.device("cuda", 0)
    )
    (note,) = batch_notes(arguments, is_sharded=False)
    assert note == (
        "One of 4 GPUs is used. To use all: torchrun --nproc-per-node 4 -m lorakit train ..."
    )

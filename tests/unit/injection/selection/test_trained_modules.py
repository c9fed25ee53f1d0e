"""Modules that an adapter trains in full, and those that it cannot."""

import pytest

from lorakit import LoraConfig, add_adapter
from lorakit.errors import TargetError
from tiny_models import (
    TinyNet,
    assert_untouched,
    bert,
    llama,
    roberta,
    snapshot,
)
from tiny_models.quantized import quantized


def test_modules_to_save_by_name():
    model = llama()
    injection = add_adapter(model, LoraConfig(r=1, modules_to_save=["lm_head", "norm"]))
    assert injection.heads == ("lm_head", "model.norm")
    assert {n for n, p in model.named_parameters() if p.requires_grad and "lora" not in n} == {
        "lm_head.trained_copies.default.weight",
        "model.norm.trained_copies.default.weight",
    }


def test_a_head_inside_a_head_is_trained_once():
    injection = add_adapter(
        roberta(), LoraConfig(r=1, task_type="SEQ_CLS", modules_to_save=["classifier.dense"])
    )
    assert injection.heads == ("classifier",)


def test_a_task_without_a_head_is_an_error():
    with pytest.raises(TargetError) as caught:
        add_adapter(bert("BertModel"), LoraConfig(r=1, task_type="SEQ_CLS"))
    assert str(caught.value) == (
        "task_type=SEQ_CLS trains the model's head, but BertModel has none beside its "
        "backbone. Load the model with a head, or name the head in modules_to_save."
    )


@pytest.mark.parametrize("container", ["layers", "layers.0"])
def test_a_container_cannot_be_trained_in_full(container):
    # ModuleList and ModuleDict have no forward, so a copy of one would never act.
    model = TinyNet()
    before = snapshot(model)
    with pytest.raises(TargetError, match=f"modules_to_save.*{container}.*without its own forward"):
        add_adapter(
            model, LoraConfig(r=1, target_modules=["classifier"], modules_to_save=[container])
        )
    assert_untouched(model, before)


def test_a_quantized_module_cannot_be_trained_in_full():
    model = quantized(llama())
    config = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["down_proj"])
    with pytest.raises(TargetError, match="is quantized, expected a dense weight"):
        add_adapter(model, config)

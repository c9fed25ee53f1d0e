"""C1, C2, C3 and C4, on the architectures' own configurations; nothing is allocated."""

import pytest
import torch
from torch import nn
from transformers import (
    DistilBertConfig,
    DistilBertForSequenceClassification,
    RobertaConfig,
    RobertaModel,
)

from lorakit import LoraConfig, add_adapter, count_parameters, set_adapter
from lorakit.injection import delete_adapter, print_trainable_parameters, trainable_text, unload
from tiny_models import TinyNet, gpt2


def on_meta(model_class, config):
    with torch.device("meta"):
        return model_class(config)


@pytest.mark.parametrize(
    "out,inside,r,full,expected",
    [(64, 512, 8, 32_768, 4_608), (500, 400, 4, 200_000, 3_600), (512, 512, 1, 262_144, 1_024)],
)
def test_c1_one_layer(out, inside, r, full, expected):
    model = nn.Sequential(nn.Linear(inside, out, bias=False))
    assert count_parameters(model).trainable == full
    add_adapter(model, LoraConfig(r=r))
    count = count_parameters(model)
    assert (count.trainable, count.lora, count.base) == (expected, expected, full)


def test_c2_distilbert_to_the_digit(capsys):
    model = on_meta(DistilBertForSequenceClassification, DistilBertConfig())
    injection = add_adapter(
        model,
        LoraConfig(r=8, lora_alpha=32, target_modules=["q_lin", "v_lin"], task_type="SEQ_CLS"),
    )
    count = count_parameters(model)
    assert count.trainable == 739_586
    assert count.total == 67_694_596
    assert count.lora == injection.lora_parameters == 147_456
    assert count.replaced == 592_130
    assert count.base == 66_955_010
    assert count.total == count.base + count.lora + count.replaced
    line = "trainable params: 739,586 || all params: 67,694,596 || trainable%: 1.0925"
    assert trainable_text(model) == line
    print_trainable_parameters(model)
    assert capsys.readouterr().out == line + "\n"


@pytest.mark.parametrize(
    "layers,width,r,expected",
    [(12, 768, 8, 294_912), (24, 1024, 8, 786_432)],
    ids=["RoBERTa-base", "RoBERTa-large"],
)
def test_c4_roberta(layers, width, r, expected):
    config = RobertaConfig(
        hidden_size=width,
        num_hidden_layers=layers,
        intermediate_size=4 * width,
        num_attention_heads=width // 64,
    )
    model = on_meta(RobertaModel, config)
    add_adapter(model, LoraConfig(r=r, target_modules=["query", "value"]))
    assert count_parameters(model).trainable == expected == 2 * layers * 2 * width * r


class Attention(nn.Module):
    def __init__(self, width):
        super().__init__()
        for name in "qkvo":
            setattr(self, name, nn.Linear(width, width, bias=False, device="meta"))


def attention_stack(layers, width):
    return nn.ModuleList(Attention(width) for _ in range(layers))


def test_c4_deberta_xxl():
    model = attention_stack(48, 1536)
    add_adapter(model, LoraConfig(r=16, target_modules=["q", "v"]))
    assert count_parameters(model).trainable == 4_718_592


# The paper's figures in millions; it cuts where it might round (18.87 is its 18.8).
C3 = [("qv", r, m) for r, m in [(1, 4.7), (2, 9.4), (4, 18.8), (8, 37.7), (64, 301.9)]]
C3 += [("qkvo", r, m) for r, m in [(1, 9.4), (2, 18.8), (4, 37.7), (64, 603.8)]]


def test_c3_gpt3_grid():
    model = attention_stack(96, 12_288)
    for targets, r, millions in C3:
        add_adapter(model, LoraConfig(r=r, target_modules=list(targets)))
        trainable = count_parameters(model).trainable
        assert trainable == 2 * 12_288 * r * 96 * len(targets)
        assert 0 <= trainable / 1e6 - millions < 0.2
        unload(model)


def test_a_tied_weight_counts_once():
    model = gpt2()
    assert model.lm_head.weight is model.transformer.wte.weight
    total = sum(p.numel() for p in model.parameters())
    assert count_parameters(model).total == count_parameters(model).base == total


def test_every_adapter_counts_and_only_the_active_ones_are_trainable():
    model = TinyNet()
    base = count_parameters(model).base
    add_adapter(model, LoraConfig(r=2, target_modules=["up"]), "a")
    add_adapter(model, LoraConfig(r=1, target_modules=["up"]), "b")
    count = count_parameters(model)
    one = 2 * (8 + 16)  # two layers, r = 1
    assert (count.lora, count.trainable, count.base) == (3 * one, one, base)
    set_adapter(model, "a")
    delete_adapter(model, "b")
    assert count_parameters(model).lora == 2 * one


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_biases_count_as_replaced(bias):
    model = TinyNet()
    base = count_parameters(model).base
    add_adapter(model, LoraConfig(r=1, target_modules=["up"], bias=bias))
    biases = 2 * 16 + (0 if bias == "lora_only" else 8 + 3)  # up; norm and classifier
    count = count_parameters(model)
    assert count.replaced == biases
    assert count.trainable == count.lora + biases
    assert count.total == base + count.lora + biases


def test_shares():
    model = nn.Sequential(nn.Linear(10, 10, bias=False))
    add_adapter(model, LoraConfig(r=1))
    count = count_parameters(model)
    assert count.trainable_share == 20 / 120
    assert count.trainable_share_of_base == 20 / 100


def test_a_model_without_parameters():
    count = count_parameters(nn.ReLU())
    assert (count.total, count.trainable_share, count.trainable_share_of_base) == (0, 0.0, 0.0)

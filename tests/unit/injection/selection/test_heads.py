import pytest
from torch import nn

import tiny_models
from lorakit import LoraConfig, add_adapter
from lorakit.errors import TargetError
from lorakit.injection.selection.heads import output_layers, task_heads
from tiny_models import TinyNet, assert_untouched, bert, llama, roberta, snapshot
from tiny_models.quantized import quantized

HEADS = [
    (
        tiny_models.distilbert,
        "DistilBertForSequenceClassification",
        ("pre_classifier", "classifier"),
    ),
    (tiny_models.distilbert, "DistilBertForTokenClassification", ("classifier",)),
    (tiny_models.bert, "BertForSequenceClassification", ("classifier",)),
    (tiny_models.bert, "BertForTokenClassification", ("classifier",)),
    (tiny_models.roberta, "RobertaForSequenceClassification", ("classifier",)),
    (tiny_models.llama, "LlamaForSequenceClassification", ("score",)),
    (tiny_models.gpt2, "GPT2ForSequenceClassification", ("score",)),
    (tiny_models.gpt2, "GPT2ForTokenClassification", ("classifier",)),
    (tiny_models.bloom, "BloomForSequenceClassification", ("score",)),
    (tiny_models.t5, "T5ForSequenceClassification", ("classification_head",)),
    (tiny_models.t5, "T5ForTokenClassification", ("classifier",)),
]


@pytest.mark.parametrize("build,model_class,expected", HEADS, ids=[h[1] for h in HEADS])
def test_the_head_is_what_stands_beside_the_backbone(build, model_class, expected):
    assert task_heads(build(model_class)) == expected


def test_a_plain_module_is_searched_for_the_usual_names():
    assert task_heads(tiny_models.TinyNet()) == ("classifier",)
    assert task_heads(nn.Sequential(nn.Linear(2, 2))) == ()


def test_a_head_of_any_name_beside_a_named_backbone():
    class Judge(nn.Module):
        base_model_prefix = "body"

        def __init__(self):
            super().__init__()
            self.body = nn.Linear(2, 2)
            self.classifier_dropout = nn.Dropout()
            self.verdict = nn.Linear(2, 2)

    assert task_heads(Judge()) == ("verdict",)


def names_of_outputs(model):
    ids = output_layers(model)
    return [name for name, module in model.named_modules() if id(module) in ids]


@pytest.mark.parametrize(
    "build,model_class,expected",
    [
        (tiny_models.llama, "LlamaForCausalLM", ["lm_head"]),
        (tiny_models.gpt2, "GPT2LMHeadModel", ["lm_head"]),
        (tiny_models.bloom, "BloomForCausalLM", ["lm_head"]),
        (tiny_models.llama, "LlamaForSequenceClassification", ["score"]),
        (
            tiny_models.roberta,
            "RobertaForSequenceClassification",
            ["classifier", "classifier.dense", "classifier.dropout", "classifier.out_proj"],
        ),
    ],
)
def test_output_layers(build, model_class, expected):
    assert names_of_outputs(build(model_class)) == expected


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

import pytest
from torch import nn

import tiny_models
from lorakit.injection.selection.heads import output_layers, task_heads

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

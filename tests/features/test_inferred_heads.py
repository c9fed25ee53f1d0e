"""Which heads a fresh adapter trains and carries where its configuration names no task."""

import pytest
import torch
import transformers
from torch import nn

import tiny_models
from fixtures.classes_with_heads import CLASSES, built, with_fresh_head
from lorakit import (
    Adapter,
    LoraConfig,
    add_adapter,
    delete_adapter,
    extract_adapter,
    load_adapter,
    merge_and_unload,
    save_adapter,
    set_adapter,
)
from lorakit.errors import LorakitWarning, TargetError
from tiny_models import WIDTH, logits, randomize_


def first_output(model, inputs):
    with torch.no_grad():
        out = model(**inputs)
    return out[0]


@pytest.mark.filterwarnings("ignore:PEFT does not read:lorakit.errors.LorakitWarning")
@pytest.mark.parametrize(
    ("name", "options", "inputs", "task"), CLASSES, ids=[c[0] for c in CLASSES]
)
def test_a_head_is_trained_and_comes_back_on_another_random_head(
    name, options, inputs, task, tmp_path
):
    model = built(name, options)
    targets = "all-linear" if "ResNet" not in name else r".*convolution"
    injection = add_adapter(model, LoraConfig(r=2, target_modules=targets))
    assert injection.heads
    assert injection.config.task_type == task
    assert f"inferred from {name}; trains head {injection.heads[0]}" in str(injection).replace(
        "GenericForSequenceClassification", name
    )
    randomize_(model, scale=0.2)
    expected = first_output(model, inputs)
    save_adapter(model, tmp_path)
    fresh = with_fresh_head(built(name, options))
    before = first_output(fresh, inputs)
    load_adapter(fresh, tmp_path)
    assert torch.equal(first_output(fresh, inputs), expected)
    assert not torch.allclose(before, expected)


def loaded(tmp_path, build=tiny_models.bert, model_class="BertForMaskedLM", into=None, **options):
    """Return a model of class `into` from a checkpoint of another class."""
    build(model_class).save_pretrained(tmp_path / "checkpoint")
    torch.manual_seed(5)
    head = getattr(transformers, into or "BertForSequenceClassification")
    return head.from_pretrained(tmp_path / "checkpoint", **options).eval()


def test_weights_that_the_checkpoint_does_not_have_are_trained_too(tmp_path):
    model = loaded(tmp_path, num_labels=3)
    injection = add_adapter(model, LoraConfig(r=2))
    assert injection.heads == ("classifier", "bert.pooler.dense")
    assert injection.notes == (
        "task_type=SEQ_CLS inferred from BertForSequenceClassification; trains head classifier",
        "Not in the checkpoint, so trained in full and saved: bert.pooler.dense",
    )
    assert str(injection).count("\n".join(injection.notes)) == 1
    randomize_(model)
    save_adapter(model, tmp_path / "adapter")
    torch.manual_seed(6)
    fresh = loaded(tmp_path, num_labels=3)
    with torch.no_grad():
        fresh.bert.pooler.dense.weight.normal_()
    load_adapter(fresh, tmp_path / "adapter")
    assert torch.equal(logits(fresh), logits(model))


def test_heads_are_trained_beside_a_named_task_too(tmp_path):
    model = loaded(tmp_path)
    injection = add_adapter(model, LoraConfig(r=2, task_type="SEQ_CLS"))
    assert injection.heads == ("classifier", "bert.pooler.dense")


def test_a_head_from_the_checkpoint_is_trained_and_the_pooler_is_adapted(tmp_path):
    model = loaded(tmp_path, model_class="BertForSequenceClassification")
    injection = add_adapter(model, LoraConfig(r=2))
    assert injection.heads == ("classifier",)
    assert "bert.pooler.dense" in [match.path for match in injection.matches]


def test_a_head_that_replaced_another_is_trained(tmp_path):
    model = loaded(tmp_path, into="BertForMaskedLM")
    model.cls.predictions.transform.dense = nn.Linear(WIDTH, WIDTH)
    injection = add_adapter(model, LoraConfig(r=2))
    assert injection.heads == ("cls.predictions.transform.dense",)
    assert injection.config.task_type is None


def test_randomly_initialized_layers_that_are_not_saved_are_named(tmp_path):
    model = loaded(tmp_path)
    model.bert.encoder.layer[1].output.dense = nn.Linear(32, WIDTH)
    injection = add_adapter(model, LoraConfig(r=2))
    assert injection.notes[-1] == (
        "Not in the checkpoint, and in no file of the adapter: bert.encoder.layer.1.output.dense"
    )


def test_a_merged_model_has_no_randomly_initialized_weights(tmp_path):
    model = loaded(tmp_path)
    add_adapter(model, LoraConfig(r=2))
    merge_and_unload(model)
    injection = add_adapter(model, LoraConfig(r=2))
    assert injection.heads == ("classifier",)
    assert len(injection.notes) == 1


@pytest.mark.parametrize("excluded", [["classifier"], r"classifier|.*\.query"])
def test_exclude_modules_leaves_a_head_frozen_and_the_table_says_so(excluded):
    model = tiny_models.bert("BertForSequenceClassification")
    injection = add_adapter(model, LoraConfig(r=2, exclude_modules=excluded))
    assert injection.heads == ()
    assert injection.config.task_type is None  # PEFT would look for the head in the file
    assert "Not trained, as exclude_modules names it: classifier" in str(injection)
    assert not model.classifier.weight.requires_grad


def test_a_head_of_which_a_layer_is_targeted_by_its_path_is_adapted_instead():
    model = tiny_models.roberta()
    injection = add_adapter(model, LoraConfig(r=2, target_modules=["query", "classifier.dense"]))
    assert injection.heads == ()
    assert "classifier.dense" in [match.path for match in injection.matches]
    assert "Not trained in full, as target_modules names what is in it: classifier" in str(
        injection
    )


@pytest.mark.parametrize(
    "model",
    [
        tiny_models.llama(),
        tiny_models.gpt2(),
        tiny_models.t5(),
        tiny_models.bert("BertForMaskedLM"),
        tiny_models.bert("BertModel"),
        tiny_models.TinyNet(),
    ],
    ids=lambda model: type(model).__name__,
)
def test_language_models_and_plain_modules_train_no_head(model):
    injection = add_adapter(model, LoraConfig(r=2))
    assert (injection.heads, injection.notes, injection.config.task_type) == ((), (), None)


def test_a_subclass_is_known_by_the_class_it_derives_from():
    class Judge(transformers.BertForSequenceClassification):
        pass

    model = Judge(tiny_models.bert("BertForSequenceClassification").config)
    assert add_adapter(model, LoraConfig(r=2)).heads == ("classifier",)


def test_a_task_that_is_named_decides_alone():
    model = tiny_models.bert("BertForTokenClassification")
    injection = add_adapter(model, LoraConfig(r=2, task_type="CAUSAL_LM"))
    assert (injection.heads, injection.notes) == ((), ())


def test_modules_to_save_come_on_top():
    model = tiny_models.distilbert()
    injection = add_adapter(model, LoraConfig(r=2, modules_to_save=["classifier"]))
    assert set(injection.heads) == {"classifier", "pre_classifier"}


def test_a_class_whose_head_is_hidden_is_refused_until_it_is_named():
    config = transformers.PerceiverConfig(
        **{"num_latents": 4, "d_latents": 16, "d_model": 16, "num_blocks": 1, "num_labels": 3},
        **{"num_self_attends_per_block": 1, "num_self_attention_heads": 2, "vocab_size": 32},
        **{"num_cross_attention_heads": 2, "max_position_embeddings": 16},
    )
    model = transformers.PerceiverForSequenceClassification(config)
    with pytest.raises(TargetError, match=r"trains the model's head, but .* name the head in modu"):
        add_adapter(model, LoraConfig(r=2))
    named = LoraConfig(r=2, modules_to_save=["perceiver.decoder"])
    assert add_adapter(model, named).heads == ("perceiver.decoder",)


def test_a_second_adapter_trains_its_own_head():
    model = tiny_models.bert("BertForSequenceClassification")
    add_adapter(model, LoraConfig(r=2), "a")
    randomize_(model, seed=1)
    a = logits(model)
    assert add_adapter(model, LoraConfig(r=2), "b").heads == ("classifier",)
    randomize_(model, seed=2)
    assert not torch.allclose(logits(model), a)
    set_adapter(model, "a")
    delete_adapter(model, "b")
    assert torch.equal(logits(model), a)


def test_extracting_takes_the_head_along():
    base = tiny_models.bert("BertForSequenceClassification")
    tuned = tiny_models.bert("BertForSequenceClassification")
    randomize_(tuned, seed=3, scale=0.1)
    adapter = extract_adapter(base, tuned, LoraConfig(r=16))
    assert set(adapter.replaced) == {"classifier.weight", "classifier.bias"}
    assert adapter.config.task_type == "SEQ_CLS"


def test_a_file_without_a_head_is_loaded_as_it_is(tmp_path):
    model = tiny_models.bert("BertForSequenceClassification")
    add_adapter(model, LoraConfig(r=2, exclude_modules=["classifier"]))
    save_adapter(model, tmp_path)
    adapter = Adapter.load(tmp_path)
    fresh = tiny_models.bert("BertForSequenceClassification")
    assert add_adapter(fresh, adapter).heads == ()


def test_a_head_with_the_name_of_a_module_in_the_backbone_is_distinguished(tmp_path):
    class Backbone(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.up = nn.LayerNorm(4), nn.Linear(4, 4)

        def forward(self, x):
            return self.up(self.norm(x))

    class SmallForImageClassification(nn.Module):
        base_model_prefix = "body"

        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.body, self.norm, self.fc = Backbone(), nn.LayerNorm(4), nn.Linear(4, 3)

        def forward(self, x):
            return self.fc(self.norm(self.body(x)))

    model, x = SmallForImageClassification(), torch.randn(2, 4)
    assert add_adapter(model, LoraConfig(r=2)).heads == ("norm", "fc")
    randomize_(model)
    with pytest.warns(LorakitWarning, match=r"it takes body\.norm for modules_to_save"):
        save_adapter(model, tmp_path)
    fresh = SmallForImageClassification()
    assert load_adapter(fresh, tmp_path).heads == ("norm", "fc")
    assert torch.equal(fresh(x), model(x))

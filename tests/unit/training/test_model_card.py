import json
from dataclasses import replace

import pytest
import yaml
from huggingface_hub import ModelCard

from lorakit import LoraConfig, QuantizationConfig
from lorakit.adapters.inference_settings import InferenceSettings
from lorakit.adapters.lineage import DataSource, Lineage
from lorakit.injection import ParameterCount
from lorakit.recipes import Recipe
from lorakit.training.model_card import CARD_FILE, card_text
from lorakit.training.report import MemoryFacts, RunFacts


@pytest.fixture
def facts():
    recipe = Recipe(
        model="owner/base",
        task="SEQ_CLS",
        data={"train": "/home/me/reviews.csv"},
        lora=LoraConfig(r=4),
        training={"learning_rate": 2e-4},
        output="/home/me/runs/reviews",
    )
    return RunFacts(
        recipe=recipe,
        injection=None,
        parameter_count=ParameterCount(trainable=10, total=1000, lora=10, replaced=0, base=990),
        train_examples=1200,
        validation_examples=120,
        notes=(),
        metrics={"eval_accuracy": 0.91234},
        train_loss=0.5,
        steps=75,
        planned_steps=75,
        best_step=None,
        reference=None,
        wall_s=1.0,
        throughput=None,
        memory=MemoryFacts(None, None, ""),
        predictions=None,
        answers=None,
        judgement=None,
    )


SETTINGS = InferenceSettings(task_type="SEQ_CLS", labels=("a", "b", "c"), dtype="bfloat16")


def code_block(text, language):
    return text.split(f"```{language}\n")[1].split("\n```")[0]


def test_a_run_leaves_a_card_that_the_hub_can_read(done):
    directory = done[0].adapter_path
    text = (directory / CARD_FILE).read_text(encoding="utf-8")
    card = ModelCard(text)
    assert card.data.library_name == "peft" and card.data.pipeline_tag == "text-generation"
    assert card.data.base_model is None  # a directory is nothing the hub could link to
    assert card.text.strip().startswith("# done\n\n**Too few examples to tell (6): perplexity -")
    assert "| optimizer steps | 10 |" in text and "| examples | 18 |" in text
    digest = json.loads((directory / "lorakit.json").read_text())["lineage"]["data"][0]["sha256"]
    assert f".jsonl | {digest} |" in text
    assert str(directory.parent.parent) not in text and "/" not in card.text.split("BASE")[0]


def test_a_classifier_on_a_base_of_the_hub(facts):
    lineage = Lineage(data=(DataSource(name="/home/me/reviews.csv", sha256="ab"),))
    text = card_text("reviews", facts, SETTINGS.model_copy(update={"lineage": lineage}))
    metadata = yaml.safe_load(text.split("---")[1])
    assert metadata["base_model"] == "owner/base"
    assert metadata["base_model_relation"] == "adapter"
    assert metadata["pipeline_tag"] == "text-classification"
    assert (
        "base = AutoModelForSequenceClassification.from_pretrained("
        '"owner/base", dtype="bfloat16", num_labels=3)'
    ) in code_block(text, "python")
    assert "--base-model" not in text and "BASE" not in text
    assert "| accuracy | 0.9123 |" in text and "| learning rate | 0.0002 |" in text
    assert "| reviews.csv | ab |" in text
    assert "/home/me" not in text


def test_a_quantized_base_without_validation(facts):
    recipe = facts.recipe.model_copy(update={"quantization": QuantizationConfig(bits=4)})
    facts = replace(facts, recipe=recipe, metrics={}, train_examples=None)
    text = card_text("a*b", facts, SETTINGS.model_copy(update={"dtype": None}))
    assert "In training it had 4 bits, which lorakit repeats." in text
    assert "\n# a\\*b\n" in text and "| examples | streamed |" in text
    assert "It was trained without validation examples." in text

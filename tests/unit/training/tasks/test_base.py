"""What all tasks share: fresh weights, padding and the settings of inference."""

import json

import pytest
import torch

from lorakit.adapters.inference_settings import InferenceSettings
from lorakit.config import TaskType
from lorakit.models.pretrained import fresh_modules
from lorakit.training.tasks import Encoded, Loaded, task_for
from lorakit.training.tasks.base import save_settings

TASK = "SEQ_CLS"


def test_a_fresh_head_is_reported_and_initialized_with_the_seed(
    prepare, tiny_distilbert_dir, cls_csv
):
    def head(**training):
        made = prepare(TASK, tiny_distilbert_dir, cls_csv, training=training)
        return made, made.model.classifier.weight.detach()

    torch.manual_seed(1)
    first, one = head()
    torch.manual_seed(2)
    _, again = head()
    _, other = head(seed=7)

    assert fresh_modules(first.model) == ("classifier", "pre_classifier")
    assert first.encoded.notes[0] == (
        "New weights, initialized with seed 42 and trained: classifier, pre_classifier."
    )
    torch.testing.assert_close(one, again, rtol=0, atol=0)
    assert not torch.equal(one, other)


def test_loading_leaves_the_random_state_alone(prepare, tiny_distilbert_dir, cls_csv):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    prepare(TASK, tiny_distilbert_dir, cls_csv)
    assert torch.rand(1) == expected


def test_pooler_missing_from_the_checkpoint_is_saved_with_the_adapter(
    prepare, tiny_bert_dir, cls_csv
):
    made = prepare(TASK, tiny_bert_dir, cls_csv)

    config = made.task.lora_config(made.loaded)

    assert config.modules_to_save == ("bert.pooler.dense",)
    assert config.task_type == TASK


@pytest.mark.parametrize("fixture", ["tiny_llama_dir", "tiny_gpt2_dir"])
def test_decoders_get_a_padding_token(prepare, request, cls_csv, fixture):
    made = prepare(TASK, request.getfixturevalue(fixture), cls_csv)

    assert made.tokenizer.pad_token_id is not None
    assert made.model.config.pad_token_id == made.tokenizer.pad_token_id
    one = made.tokenizer(["good film"], return_tensors="pt")
    two = made.tokenizer(["good film", "a much longer story"], padding=True, return_tensors="pt")
    with torch.no_grad():
        alone, padded = made.model(**one).logits[0], made.model(**two).logits[0]
    torch.testing.assert_close(alone, padded, rtol=1e-4, atol=1e-5)


def test_new_weights_are_reported_only_when_trained(prepare, tiny_distilbert_dir, cls_csv):
    made = prepare(TASK, tiny_distilbert_dir, cls_csv)
    assert any("New weights" in note for note in made.task.fresh_notes(made.loaded))
    made.model.requires_grad_(False)  # as in evaluation, where the head is the adapter's
    assert made.task.fresh_notes(made.loaded) == []


def test_inference_loads_the_base_as_it_was_trained_on(recipe_of):
    task, model = task_for(TASK), torch.nn.Linear(1, 1)
    model.dtype = torch.bfloat16
    plain = Loaded(recipe_of(TASK, "m", "x", training={"seed": 7}), None, None, model)
    assert task.settings(plain, max_length=9) == {
        "dtype": "bfloat16",
        "seed": 7,
        "max_length": 9,
    }
    how = {"bits": 4, "compute_dtype": "bfloat16"}
    quantized = recipe_of(TASK, "m", "x", top={"quantization": how})
    settings = task.settings(Loaded(quantized, None, None, model))
    assert "dtype" not in settings
    assert settings["quantization"].bits == 4
    assert settings["quantization"].compute_dtype == "auto", "another device chooses its own"
    assert settings["seed"] == 42


def test_settings_come_back_and_defaults_are_left_out(tmp_path):
    encoded = Encoded(None, None, settings={"max_length": 64, "dtype": "bfloat16", "seed": 7})

    path = save_settings(tmp_path, TaskType.SEQ_CLS, ("no", "yes"), encoded)

    assert [file.name for file in tmp_path.iterdir()] == ["lorakit.json"]
    assert json.loads(path.read_text()) == {
        "task_type": "SEQ_CLS",
        "labels": ["no", "yes"],
        "dtype": "bfloat16",
        "seed": 7,
        "max_length": 64,
    }
    loaded = InferenceSettings.load(tmp_path)
    assert loaded.labels == ("no", "yes")
    assert (loaded.max_length, loaded.dtype, loaded.seed) == (64, "bfloat16", 7)

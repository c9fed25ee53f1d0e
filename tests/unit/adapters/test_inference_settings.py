"""Settings beside an adapter: read again, and the class names that a library user saves."""

import json

import pytest

from lorakit import LoraConfig, add_adapter, save_adapter
from lorakit.adapters.inference_settings import SETTINGS_FILE, InferenceSettings
from lorakit.errors import AdapterFileError, ConfigError
from lorakit.inference import load_for_inference
from tiny_models import TinyNet, bert, llama

NAMES = {0: "sports", 1: "news", 2: "weather"}


def classifier(model_class="BertForSequenceClassification", **options):
    model = bert(model_class, id2label=NAMES, **options)
    add_adapter(model, LoraConfig(r=2))
    return model


@pytest.mark.parametrize(
    ("model_class", "task"),
    [("BertForSequenceClassification", "SEQ_CLS"), ("BertForTokenClassification", "TOKEN_CLS")],
)
def test_the_class_names_of_the_model_lie_beside_its_adapter(model_class, task, tmp_path):
    written = save_adapter(classifier(model_class), tmp_path / "adapter")
    assert written[-1] == tmp_path / "adapter" / SETTINGS_FILE
    settings = InferenceSettings.load(tmp_path / "adapter")
    assert settings == InferenceSettings(task_type=task, labels=tuple(NAMES.values()))


def test_what_a_run_has_written_there_stays(tmp_path):
    model = classifier()
    save_adapter(model, tmp_path)
    InferenceSettings(task_type="SEQ_CLS", labels=("a", "b", "c"), max_length=7).save(tmp_path)
    save_adapter(model, tmp_path)
    settings = InferenceSettings.load(tmp_path)
    assert (settings.max_length, settings.labels) == (7, tuple(NAMES.values()))


@pytest.mark.parametrize("there", ["{", '{"task_type": "CAUSAL_LM", "format": "text"}', '{"x": 1}'])
def test_what_is_damaged_or_for_another_task_goes(there, tmp_path):
    (tmp_path / SETTINGS_FILE).write_text(there)
    save_adapter(classifier(), tmp_path)
    written = json.loads((tmp_path / SETTINGS_FILE).read_text())
    assert written == {"task_type": "SEQ_CLS", "labels": list(NAMES.values())}


@pytest.mark.parametrize("build", [llama, TinyNet, lambda: bert("BertForQuestionAnswering")])
def test_other_models_have_none(build, tmp_path):
    model = build()
    add_adapter(model, LoraConfig(r=2))
    assert [path.suffix for path in save_adapter(model, tmp_path)] == [".safetensors", ".json"]
    assert not (tmp_path / SETTINGS_FILE).exists()


def test_inference_reads_them(tmp_path, monkeypatch):
    base = bert("BertForMaskedLM")
    base.save_pretrained(tmp_path / "base")
    model = type(classifier()).from_pretrained(tmp_path / "base", id2label=NAMES)
    add_adapter(model, LoraConfig(r=2))
    save_adapter(model, tmp_path / "adapter")
    monkeypatch.setattr("lorakit.inference.loaded.load_tokenizer", lambda *a, **k: _NoTokenizer())
    loaded = load_for_inference(tmp_path / "adapter")
    assert loaded.labels == tuple(NAMES.values())
    assert loaded.task_type == "SEQ_CLS"


def test_adapter_of_another_tool_has_none(tmp_path):
    assert InferenceSettings.load(tmp_path) == InferenceSettings()


def test_damaged_file(tmp_path):
    path = tmp_path / "lorakit.json"
    path.write_text('{"labels": [', encoding="utf-8")

    with pytest.raises(AdapterFileError) as caught:
        InferenceSettings.load(tmp_path)
    assert str(caught.value).startswith(f"Could not read {path}: Expecting value")
    assert str(caught.value).endswith(
        "expected a JSON object. Restore it from a backup, or delete it to use the adapter "
        "without labels."
    )

    path.write_text('{"lables": ["a"]}', encoding="utf-8")
    with pytest.raises(ConfigError, match=r"unknown key 'lables'\. Did you mean 'labels'\?"):
        InferenceSettings.load(tmp_path)


class _NoTokenizer:
    pad_token_id = 0
    eos_token_id = 2

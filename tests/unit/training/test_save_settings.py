import json

import pytest

from lorakit.adapters.inference_settings import InferenceSettings
from lorakit.config import TaskType
from lorakit.errors import AdapterFileError, ConfigError
from lorakit.training.save_settings import save_settings
from lorakit.training.tasks import Encoded


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

"""The path of earlier versions."""

from lorakit import inference as present
from lorakit.training import inference as earlier
from lorakit.training.tasks.base import save_settings


def test_its_names_are_those_of_inference():
    assert earlier.save_settings is save_settings
    names = {*earlier.__all__} - {"save_settings"}
    assert {"load_for_inference", "generate_text", "classify", "tag"} <= names
    assert all(getattr(earlier, name) is getattr(present, name) for name in names)

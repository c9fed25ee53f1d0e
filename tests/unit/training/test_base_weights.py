"""The path of earlier versions."""

from lorakit.inference import base_weights as present
from lorakit.training import base_weights as earlier


def test_its_names_are_those_of_inference():
    assert earlier.__all__ == ["BaseWeights", "load_base_weights"]
    assert all(getattr(earlier, name) is getattr(present, name) for name in earlier.__all__)

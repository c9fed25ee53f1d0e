"""The table of variants."""

import pytest

from lorakit import LoraConfig
from lorakit.layers.variants.dora import Dora
from lorakit.layers.variants.table import VARIANTS, variant_named, with_companions
from lorakit.layers.variants.trained_parts import FrozenA, TrainedBias


def test_names_keys_and_settings_are_distinct_and_settings_exist():
    for values in (
        [v.name for v in VARIANTS if v.name],
        [v.file_key for v in VARIANTS if v.file_key],
        [v.setting for v in VARIANTS if v.setting],
    ):
        assert len(values) == len({*values})
    assert {v.setting for v in VARIANTS if v.setting} <= LoraConfig.model_fields.keys()
    assert all(v.setting and v.name and v.effect for v in with_companions())


def test_by_the_name_of_the_tensor():
    assert [TrainedBias, Dora, FrozenA] == VARIANTS and with_companions() == [Dora]
    assert variant_named("magnitude") is Dora and variant_named("bias") is TrainedBias
    for name in ("", "nothing"):
        with pytest.raises(TypeError, match="expected one of bias, magnitude"):
            variant_named(name)

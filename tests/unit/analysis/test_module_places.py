"""Kinds and layers, read from the paths of modules in models as they are."""

import pytest
from torch import nn
from transformers.pytorch_utils import Conv1D

from lorakit.analysis.module_places import Place, module_places
from tiny_models import bert, gpt2, t5


def kinds_of(model):
    paths = [p for p, m in model.named_modules() if isinstance(m, (nn.Linear, Conv1D))]
    places = module_places(paths)
    return places, list(dict.fromkeys(place.kind for place in places.values()))


def test_names_are_as_short_as_they_are_distinct():
    places, kinds = kinds_of(bert())
    assert places["bert.encoder.layer.1.attention.self.query"] == Place("query", 1)
    assert "attention.output.dense" in kinds and "intermediate.dense" in kinds
    assert places["classifier"] == Place("classifier", None)
    assert len(kinds) == 7


def test_two_modules_of_one_name_in_gpt2_are_distinguished():
    _, kinds = kinds_of(gpt2())
    assert kinds[:4] == ["c_attn", "attn.c_proj", "c_fc", "mlp.c_proj"]


def test_encoder_and_decoder_are_distinguished():
    places, kinds = kinds_of(t5())
    assert places["encoder.block.1.layer.0.SelfAttention.q"] == Place("encoder SelfAttention.q", 1)
    assert places["decoder.block.0.layer.0.SelfAttention.q"] == Place("decoder SelfAttention.q", 0)
    assert places["decoder.block.0.layer.1.EncDecAttention.q"].kind == "EncDecAttention.q"
    assert len(kinds) == len(set(kinds))


@pytest.mark.parametrize("path", ["lm_head", "model.embed_tokens", "layers.3"])
def test_a_module_outside_of_layers_has_none(path):
    place = module_places([path])[path]
    assert place.layer is None
    assert path.endswith(place.kind)


def test_every_two_modules_differ_in_kind_or_layer():
    for model in (bert(), gpt2(), t5()):
        places, _ = kinds_of(model)
        assert len(set(places.values())) == len(places)

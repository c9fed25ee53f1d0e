"""The same updates with other ranks and scalings."""

import pytest
import torch

from lorakit.adapters import resize_adapter
from lorakit.adapters.operations.reparametrize import outline_of, reparametrize_adapter
from lorakit.config import LoraConfig
from lorakit.errors import AdapterFileError
from tiny_models.adapters import layered_adapter


def config_like(adapter, **changes):
    return LoraConfig(**{**adapter.config.model_dump(), **changes})


def test_without_a_change_the_tensors_are_the_same():
    adapter = layered_adapter()
    made = reparametrize_adapter(adapter, config_like(adapter, lora_dropout=0.5))
    assert made.adapter.config.lora_dropout == 0.5 and made.error == 0
    for path, pair in adapter.factors.items():
        assert made.adapter.factors[path][0] is pair[0]
        assert made.adapter.factors[path][1] is pair[1]


@pytest.mark.parametrize(
    "changes",
    [
        {"lora_alpha": 7},
        {"use_rslora": True},
        {"r": 6, "lora_alpha": 3},
        {"rank_pattern": {"q_proj": 9}, "alpha_pattern": {"v_proj": 1}},
    ],
)
def test_scalings_and_larger_ranks_change_no_update(changes):
    adapter = layered_adapter()
    config = config_like(adapter, **changes)
    made = reparametrize_adapter(adapter, config)
    assert made.adapter.config == config and made.error == 0
    for path, (A, B) in made.adapter.factors.items():
        assert A.shape[0] == B.shape[1] == config.rank_for(path)
        new, old = made.adapter.delta_weight(path), adapter.delta_weight(path)
        assert torch.allclose(new, old, atol=1e-4)


def test_a_smaller_rank_loses_what_resizing_loses():
    adapter = layered_adapter()
    made = reparametrize_adapter(adapter, config_like(adapter, r=2))
    alone = resize_adapter(adapter, 2)
    assert made.error == pytest.approx(alone.error) and made.errors == alone.errors
    some = reparametrize_adapter(adapter, config_like(adapter, rank_pattern={"q_proj": 2}))
    assert 0 < some.error < made.error
    assert {path for path, error in some.errors.items() if error} == {
        path for path in adapter.factors if path.endswith("q_proj")
    }


def test_an_update_that_depends_on_the_base_keeps_its_factors():
    adapter = layered_adapter(init_lora_weights="pissa")
    assert reparametrize_adapter(adapter, adapter.config).error == 0
    for changes in ({"r": 2}, {"lora_alpha": 7}):
        with pytest.raises(AdapterFileError, match="got init_lora_weights='pissa', with which"):
            reparametrize_adapter(adapter, config_like(adapter, **changes))


def test_an_outline_has_the_shapes_of_the_result():
    adapter = layered_adapter()
    config = config_like(adapter, rank_pattern={"q_proj": 9})
    outline = outline_of(adapter, config, torch.device("meta"))
    made = reparametrize_adapter(adapter, config).adapter
    for path, pair in made.factors.items():
        assert [t.shape for t in outline.factors[path]] == [t.shape for t in pair]
        assert all(tensor.is_meta for tensor in outline.factors[path])

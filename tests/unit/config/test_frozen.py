"""Frozen values do not hand out what can be changed."""

import copy
import json
import pickle
from dataclasses import replace

import pytest
import torch
from pydantic import BaseModel

from lorakit import Adapter, LoraConfig, QuantizationConfig, Recipe
from lorakit.adapters import DataInitialization, Extraction, Resize
from lorakit.config.frozen import FrozenDict, FrozenList, freeze, unfreeze

CHANGES = {
    "FrozenDict": [
        lambda v: v.__setitem__("a", 0),
        lambda v: v.__delitem__("a"),
        lambda v: v.__ior__({"b": 1}),
        lambda v: v.clear(),
        lambda v: v.pop("a"),
        lambda v: v.popitem(),
        lambda v: v.setdefault("b", 1),
        lambda v: v.update(b=1),
    ],
    "FrozenList": [
        lambda v: v.__setitem__(0, 0),
        lambda v: v.__delitem__(0),
        lambda v: v.__iadd__([1]),
        lambda v: v.__imul__(2),
        lambda v: v.append(1),
        lambda v: v.extend([1]),
        lambda v: v.insert(0, 1),
        lambda v: v.pop(),
        lambda v: v.remove(1),
        lambda v: v.clear(),
        lambda v: v.sort(),
        lambda v: v.reverse(),
    ],
}
VALUES = {"FrozenDict": FrozenDict(a=1), "FrozenList": FrozenList([1])}


@pytest.mark.parametrize(
    ("kind", "change"), [(kind, change) for kind, many in CHANGES.items() for change in many]
)
def test_no_method_changes_one(kind, change):
    value = VALUES[kind]
    before = repr(value)
    with pytest.raises(
        TypeError, match=f"Cannot change this {kind}: .* Change a copy, (dict|list)"
    ):
        change(value)
    assert repr(value) == before


def test_every_method_of_a_dict_and_a_list_that_changes_it_is_refused():
    for frozen_class, plain in ((FrozenDict, dict), (FrozenList, list)):
        overridden = {name for name in vars(plain) if name in vars(frozen_class)}
        changing = {
            *("__setitem__", "__delitem__", "__ior__", "__iadd__", "__imul__", "append", "extend"),
            *("insert", "pop", "popitem", "remove", "clear", "sort", "reverse", "setdefault"),
            "update",
        }
        assert {name for name in vars(plain) if name in changing} <= overridden


def test_inner_values_are_frozen_and_thawed_as_well():
    plain = {"a": [{"b": [1]}], "c": ({"d": 1},)}
    value = freeze(plain)
    assert value == plain and hash(value) == hash(freeze(plain))
    assert isinstance(value["a"][0]["b"], FrozenList) and isinstance(value["c"][0], FrozenDict)
    assert type(unfreeze(value)["a"][0]) is dict
    assert json.dumps(value) == json.dumps(plain)


CONFIGS = {
    "LoraConfig": LoraConfig(
        rank_pattern={"q": 2},
        alpha_pattern={"q": 3},
        enable_lora={"c": [True, False]},
        trainable_token_indices={"embed": [1, 2]},
    ),
    "QuantizationConfig": QuantizationConfig(skip_modules=["head"]),
    "Recipe": Recipe(
        model="m",
        task="SEQ_CLS",
        data={"train": "a.csv"},
        lora={"rank_pattern": {"q": 2}},
        training={"lr_scheduler_kwargs": {"a": [1]}, "report_to": ["none"]},
        output="out",
    ),
}


def insides(value):
    """Yield every dict and list inside a value."""
    if isinstance(value, (dict, list)):
        yield value
    parts = value if isinstance(value, (list, tuple)) else ()
    if isinstance(value, (dict, BaseModel)):
        parts = (value if isinstance(value, dict) else vars(value)).values()
    for inner in parts:
        yield from insides(inner)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_configurations_hand_out_nothing_that_changes(config):
    copies = {
        "itself": config,
        "deep copy": copy.deepcopy(config),
        "copy": copy.copy(config),
        "pickle": pickle.loads(pickle.dumps(config)),
        "model_copy": config.model_copy(),
        "deep model_copy": config.model_copy(deep=True),
        "values": type(config)(**config.model_dump()),
        "json": type(config).model_validate_json(config.model_dump_json()),
    }
    for how, same in copies.items():
        assert same == config, how
        assert hash(same) == hash(config), how
        assert all(type(v) in (FrozenDict, FrozenList) for v in insides(same)), how


def test_what_a_configuration_was_made_of_can_change_without_it():
    ranks = {"q": 2}
    config = LoraConfig(rank_pattern=ranks)
    ranks["q"] = 5
    copied = config.model_copy(update={"alpha_pattern": ranks})
    ranks["q"] = 7
    assert (config.rank_for("q"), copied.alpha_for("q")) == (2, 5)
    with pytest.raises(TypeError, match="Cannot change this FrozenDict"):
        copied.alpha_pattern["q"] = 1


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_dumps_are_plain(config):
    for mode in ("python", "json"):
        values = config.model_dump(mode=mode)
        assert all(type(v) in (dict, list) for v in insides(values))
    json.dumps(config.model_dump(mode="json"))


def test_a_recipe_is_written_as_before():
    assert "lr_scheduler_kwargs:" in CONFIGS["Recipe"].to_yaml()
    assert Recipe.check(CONFIGS["Recipe"].model_dump(mode="json"), "here") == CONFIGS["Recipe"]


def test_adapters_and_results_hand_out_nothing_that_changes():
    pair = (torch.ones(2, 3), torch.ones(4, 2))
    factors = {"up": pair}
    adapter = Adapter(LoraConfig(r=2, target_modules=["up"]), factors, {"head.bias": torch.ones(2)})
    factors["down"] = pair
    results = [
        adapter,
        replace(adapter, replaced={}),
        copy.deepcopy(adapter),
        pickle.loads(pickle.dumps(adapter)),
        Extraction(adapter, {"up": 1.0}, {"up": 1.0}),
        Resize(adapter, {"up": 0.0}, 0.0),
        DataInitialization({"up": 2}, ()),
    ]
    for value in results:
        mappings = [v for v in vars(value).values() if isinstance(v, dict)]
        assert mappings and all(type(v) is FrozenDict for v in mappings)
    assert list(adapter.factors) == ["up"]
    assert adapter.factors["up"][0] is pair[0]

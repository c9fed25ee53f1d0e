"""What adapters must have in common to be combined."""

import re
from dataclasses import replace

import pytest
import torch

from lorakit import Adapter
from lorakit.adapters import combine
from lorakit.adapters.operations.compatibility import common_base_weights
from lorakit.errors import (
    AdapterMismatchError,
    ConfigError,
)
from tiny_models.adapters import layered_adapter


def test_the_order_of_target_names_makes_no_difference():
    names = ["q_proj", "v_proj"]
    one = layered_adapter(target_modules=names)
    other = layered_adapter(seed=5, target_modules=names[::-1])
    made = combine({"a": one, "b": other}, {"a": 1.0, "b": 1.0}, "cat")
    assert made.config.target_modules == one.config.target_modules


def trained_heads(*heads, **config):
    adapters = {}
    for name, head in zip("ab", heads, strict=False):
        replaced = {} if head is None else {"classifier.weight": torch.tensor([head])}
        one = layered_adapter(modules_to_save=[] if head is None else ["classifier"], **config)
        adapters[name] = Adapter(one.config, one.factors, replaced)
    return adapters


def test_a_head_of_one_adapter_is_carried_over_and_two_exclude_each_other():
    weights = {"a": 1.0, "b": 1.0}
    made = combine(trained_heads(None, 2.0), weights)
    assert made.replaced["classifier.weight"].item() == 2
    assert made.config.modules_to_save == ("classifier",)
    assert combine(trained_heads(2.0, 2.0), weights).replaced
    with pytest.raises(AdapterMismatchError, match=r"classifier\.weight differs between a and b"):
        combine(trained_heads(1.0, 2.0), weights)


def test_of_heads_that_differ_those_of_a_named_adapter_are_kept():
    adapters, weights = trained_heads(1.0, 2.0), {"a": 1.0, "b": 1.0}

    with pytest.raises(AdapterMismatchError) as caught:
        combine(adapters, weights)

    assert str(caught.value) == (
        "Cannot combine a, b: classifier.weight differs between a and b, and tensors "
        "trained in full cannot be added. Name the adapter whose heads and biases to keep: "
        "heads_from='a', or --heads-from a on the command line."
    )
    for name, head in (("a", 1.0), ("b", 2.0)):
        made = combine(adapters, weights, heads_from=name)
        assert made.replaced["classifier.weight"].item() == head
        assert made.config.modules_to_save == ("classifier",)
    assert combine(trained_heads(None, 2.0), weights, heads_from="a").replaced
    with pytest.raises(ConfigError, match="got heads_from='c', expected one of a, b"):
        combine(adapters, weights, heads_from="c")


def other(**changes):
    return layered_adapter(seed=9, **changes)


@pytest.mark.parametrize(
    "second,said",
    [
        (lambda: other(base_model="y"), "their base is 'x' in a, 'y' in b"),
        (lambda: other(width=12), "maps from 24 to 24 in a, from 12 to 12 in b"),
        (lambda: other(r=2), "has rank 4 in a, 2 in b"),
        (lambda: other(bias="all"), "bias is 'none' in a, 'all' in b"),
        (lambda: other(task_type="SEQ_CLS"), "their task is CAUSAL_LM in a, SEQ_CLS in b"),
        (
            lambda: other(embeddings=["model.layers.0.attn.q_proj"]),
            "is an embedding in one adapter and a linear layer in another",
        ),
    ],
)
def test_adapters_that_do_not_belong_together_are_refused(second, said):
    first = layered_adapter(base_model="x", task_type="CAUSAL_LM")
    with pytest.raises(AdapterMismatchError, match=re.escape(said)):
        combine({"a": first, "b": second()}, {"a": 1, "b": 1})


def test_all_reasons_are_counted_and_a_base_can_be_named():
    first, second = layered_adapter(base_model="x"), other(base_model="y", bias="all")
    with pytest.raises(AdapterMismatchError, match="1 more such problems"):
        combine({"a": first, "b": second}, {"a": 1, "b": 1})
    second = other(base_model="y")
    made = combine({"a": first, "b": second}, {"a": 1, "b": 1}, base_model="z")
    assert made.base_model == "z"


def test_base_weights_that_two_adapters_repeat_are_united_or_a_problem():
    def repeating(**weights):
        return replace(layered_adapter(), base_weights=weights)

    one = {"embed": torch.ones(2)}
    problems: list[str] = []
    adapters = {"a": repeating(**one), "b": repeating(**one, head=torch.zeros(1))}
    assert common_base_weights(adapters, problems).keys() == {"embed", "head"} and not problems
    adapters["c"] = repeating(embed=torch.ones(3))
    common_base_weights(adapters, problems)
    assert problems == ["the base's embed.weight differs between a and c."]

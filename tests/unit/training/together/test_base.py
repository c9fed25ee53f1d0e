"""One base for all runs: shared weights, but each run's head."""

import pytest
import torch

from lorakit.errors import ConfigError, TrainingError
from lorakit.models.pretrained import fresh_modules
from lorakit.training import Recipe
from lorakit.training.tasks import task_for
from lorakit.training.together.base import BaseInProcess


def recipe_of(model, data, seed=42):
    return Recipe.check(
        {
            "model": model,
            "task": "SEQ_CLS",
            "data": {"train": data},
            "training": {"seed": seed, "use_cpu": True},
            "output": "unused",
        },
        "the recipe",
    )


def loaded(base, model, data, labels=("a", "b"), seed=42):
    recipe = recipe_of(model, data, seed)
    task = task_for(recipe.task)
    tokenizer = task.load_tokenizer(recipe)
    return base.load(recipe, task, tokenizer, labels), task.load_base(recipe, tokenizer, labels)


def test_runs_share_the_weights_and_have_the_heads_of_their_seeds(tiny_bert_dir, cls_csv):
    base = BaseInProcess()
    found = {seed: loaded(base, tiny_bert_dir, cls_csv, seed=seed) for seed in (42, 7)}
    for ours, theirs in found.values():
        assert fresh_modules(ours) == fresh_modules(theirs)
        for name, tensor in theirs.state_dict().items():
            assert torch.equal(ours.state_dict()[name], tensor), name
    one, other = (dict(ours.named_parameters()) for ours, _ in found.values())
    fresh = {name for name in one if name.rpartition(".")[0] in fresh_modules(found[7][0])}
    assert fresh
    for name in one:
        assert (one[name] is other[name]) == (name not in fresh), name


def test_another_base_is_refused_once_runs_have_begun(tiny_bert_dir, cls_csv):
    base = BaseInProcess()
    with pytest.raises(TrainingError, match="No base is loaded"):
        _ = base.pristine
    loaded(base, tiny_bert_dir, cls_csv)
    loaded(base, tiny_bert_dir, cls_csv, ("a", "b", "c"))
    base.settle(recipe_of(tiny_bert_dir, cls_csv))
    with pytest.raises(
        ConfigError, match=r'labels is \["a", "b", "c"\] there and \["a", "b"\] here'
    ):
        loaded(base, tiny_bert_dir, cls_csv)

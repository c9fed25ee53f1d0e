"""Searches of a tiny causal LM."""

import pytest

from fixtures.runs import running_ray

# One trial at a time: each process of a trial imports the libraries, which takes most of its time.
TINY = {"max_epochs": 3, "cpus_per_trial": 1, "max_concurrent": 1}


@pytest.fixture(scope="package")
def machines(forked_workers):
    """Ray in this process, which ends with the folder; its machines."""
    with running_ray(forked_workers) as found:
        yield found


@pytest.fixture
def recipe(tiny_llama_dir, prompt_jsonl, tmp_path):
    """Makes a recipe with a search into `tmp_path / output`."""

    def make(output="search", search=None, **changes):
        from lorakit.training import Recipe

        values = {
            "model": tiny_llama_dir,
            "task": "CAUSAL_LM",
            "data": {"train": prompt_jsonl, "validation_fraction": 0.25},
            "lora": {"r": 2, "target_modules": ["q_proj", "v_proj"]},
            "training": {"per_device_train_batch_size": 4, "use_cpu": True, "seed": 3},
            "search": TINY | (search or {}),
            "output": str(tmp_path / output),
            **changes,
        }
        return Recipe.check(values, "the recipe")

    return make

"""Searches of a tiny causal LM, and one Ray for all tests of a file."""

import pytest

TINY = {"max_epochs": 3, "cpus_per_trial": 1}


@pytest.fixture(scope="module")
def machines():
    """Ray in this process, with two CPUs whatever the machine has; its machines.

    It ends with the file: other tests are of a process that runs no Ray.
    """
    import ray

    from lorakit.tuning.cluster import _SETTINGS, ray_cluster

    with pytest.MonkeyPatch.context() as patch:
        for name, value in _SETTINGS.items():
            patch.setenv(name, value)
        ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
        with ray_cluster() as found:
            yield found
        ray.shutdown()


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

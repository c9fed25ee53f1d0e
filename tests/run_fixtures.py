"""Runs of a tiny causal LM: a recipe, one run that went through, and one that is stopped."""

import pytest

SHORT = {"max_steps": 4, "per_device_train_batch_size": 4, "learning_rate": 5e-3, "use_cpu": True}


@pytest.fixture
def recipe(tiny_llama_dir, prompt_jsonl, tmp_path):
    """Makes the recipe of a short run into `tmp_path / output`."""
    return lambda output="run", **changes: _recipe(
        tiny_llama_dir, prompt_jsonl, tmp_path / output, changes
    )


def _recipe(model, data, output, changes):
    from lorakit.training import Recipe

    values = {
        "model": model,
        "task": "CAUSAL_LM",
        "data": {"train": data, "validation_fraction": 0.25},
        "lora": {"r": 2, "lora_dropout": 0.1, "target_modules": ["q_proj", "v_proj"]},
        "output": str(output),
        **changes,
        "training": {**SHORT, **changes.get("training", {})},
    }
    return Recipe.check(values, "the recipe")


@pytest.fixture(scope="session")
def done(tiny_llama_dir, prompt_jsonl, tmp_path_factory):
    """A run that went through: its result and its events."""
    from lorakit.training import train

    output = tmp_path_factory.mktemp("runs") / "done"
    epochs = {"training": {"num_train_epochs": 2, "max_steps": -1}}
    events = []
    result = train(
        _recipe(tiny_llama_dir, prompt_jsonl, output, epochs),
        on_event=lambda *event: events.append(event),
    )
    return result, events


@pytest.fixture
def stop_after(monkeypatch):
    """Makes training stop after an optimizer step, as Ctrl-C does; returns how to undo that."""
    from lorakit.training.trainers.adapter_trainer import AdapterTrainerMixin

    def make(step):
        whole = AdapterTrainerMixin._get_grad_norm

        def stopping(self, *args, **kwargs):
            if self.state.global_step == step:
                raise KeyboardInterrupt
            return whole(self, *args, **kwargs)

        monkeypatch.setattr(AdapterTrainerMixin, "_get_grad_norm", stopping)
        return lambda: monkeypatch.setattr(AdapterTrainerMixin, "_get_grad_norm", whole)

    return make

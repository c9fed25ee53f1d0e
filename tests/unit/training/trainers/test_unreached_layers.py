"""Layers that no step has reached are named at the end of a run."""

import pytest
import torch
from torch import nn
from transformers import TrainerState
from transformers.models.llama.modeling_llama import LlamaMLP

from lorakit.config import LoraConfig
from lorakit.injection import add_adapter
from lorakit.training import train
from lorakit.training.trainers.unreached_layers import UnreachedLayers


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.usual, self.rare, self.never = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x, takes_rare=False):
        x = self.usual(x)
        return self.rare(x) if takes_rare else x


@pytest.fixture
def model():
    torch.manual_seed(0)
    made = Branches()
    add_adapter(made, LoraConfig(r=2, target_modules=["usual", "rare", "never"]))
    return made


def step(watch, model, number, **how):
    model.zero_grad()
    model(torch.ones(2, 4), **how).sum().backward()
    watch.on_pre_optimizer_step(None, TrainerState(global_step=number), None, model=model)


def test_what_some_step_reaches_is_forgotten(model):
    watch = UnreachedLayers()
    step(watch, model, 0)
    assert watch.paths == ["never", "rare"]
    step(watch, model, 1, takes_rare=True)
    step(watch, model, 2)
    assert watch.note() == (
        "1 of 3 adapted layers got no gradient in any step, so they have not been trained: never. "
        "Leave them out of lora.target_modules, or train on examples that use them."
    )


def test_a_resumed_run_speaks_of_its_own_steps(model):
    watch = UnreachedLayers()
    step(watch, model, 40)
    assert "2 of 3 adapted layers got no gradient in any step since step 41" in watch.note()


def test_there_is_nothing_to_say_without_steps_or_where_all_are_reached(model):
    watch = UnreachedLayers()
    assert watch.note() is None
    del model.never
    step(watch, model, 0, takes_rare=True)
    assert watch.note() is None


class Ungated(LlamaMLP):
    """Another class, as what was found in the known one's forward is remembered."""

    def forward(self, x):
        return self.down_proj(self.up_proj(x))


def test_a_run_names_them_at_its_end(recipe, monkeypatch):
    monkeypatch.setattr("transformers.models.llama.modeling_llama.LlamaMLP", Ungated)
    notes = []
    lora = {"r": 2, "target_modules": ["gate_proj", "up_proj"]}
    result = train(
        recipe(lora=lora),
        on_event=lambda name, payload: notes.extend(payload.get("notes", ())),
    )
    [note] = [note for note in notes if "no gradient" in note]
    assert note.startswith("2 of 4 adapted layers got no gradient in any step")
    assert "model.layers.0.mlp.gate_proj, model.layers.1.mlp.gate_proj" in note
    report = (result.run_dir / "report.md").read_text()
    assert "2 of 4 adapted layers got no gradient in any step" in report

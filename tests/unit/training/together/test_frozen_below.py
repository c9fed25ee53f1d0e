"""What stands for the frozen blocks of several runs: computed once, and put in their place."""

from types import SimpleNamespace

import pytest
import torch

from lorakit import LoraConfig, add_adapter
from lorakit.models.same_weights import copy_over_same_weights
from lorakit.training.frozen_part import FrozenPart
from lorakit.training.frozen_part.blocks import BlockOutput, find_frozen_blocks
from lorakit.training.frozen_part.cached_forward import CachedForward
from lorakit.training.together.frozen_below import Below, Examples, Found, below_of
from lorakit.training.together.process_state import ProcessState
from lorakit.training.together.stacked_model import Pass, StackedModel, backbone_of
from tiny_models import llama

IDS = {"short": [[5, 6, 7]], "long": [[5, 6, 7, 8, 9], [9, 8, 7, 6, 5]]}


class Kept(dict):
    """A store in memory, and the keys of each `put`."""

    def __init__(self):
        super().__init__()
        self.put_keys = []

    def get(self, keys):
        return {key: self[key] for key in keys if key in self}

    def put(self, states):
        self.put_keys.append([*states])
        self.update(states)


@pytest.fixture
def group():
    """A base, the models of two runs that adapt its upper half, and the model of both."""
    base = llama(num_hidden_layers=4).requires_grad_(False)
    stacked, models = StackedModel(base, torch.device("cpu")), []
    for number in range(2):
        model = copy_over_same_weights(base)
        torch.manual_seed(number)
        targets = {"target_modules": ["q_proj", "down_proj"], "layers_to_transform": (2, 3)}
        add_adapter(model, LoraConfig(r=2 + number, **targets))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.3)
        models.append(model.train())
        stacked.attach(f"run-{number}", model)
    return SimpleNamespace(base=base, models=models, stacked=stacked)


def looking_up(model, store, ids):
    """Return what a run does with its frozen blocks, inside a call with a batch."""
    forward = CachedForward(store, BlockOutput())
    forward.begin(model, (), {"input_ids": torch.tensor(ids)})
    return FrozenPart((), find_frozen_blocks(model), False, forward)


def expected_states(model, ids):
    seen = []
    handle = model.model.layers[1].register_forward_hook(lambda *args: seen.append(args[-1]))
    model(torch.tensor(ids))
    handle.remove()
    return seen[0].detach()


def requested(part, ids):
    """Return the request for what a run does not know, and what stands below after the answer."""
    asked = []

    def compute(request):
        asked.append(request)
        return [Found(torch.zeros(end - begin, 16), True) for begin, end in request.tokens]

    below = below_of(part, {"input_ids": torch.tensor(ids)}, None, (), compute)
    return asked, below


def test_only_what_is_not_kept_is_requested(group):
    store, ids = Kept(), IDS["long"]
    first = looking_up(group.models[0], store, ids[:1])
    requested(first, ids[:1])
    asked, below = requested(looking_up(group.models[0], store, ids), ids)
    assert [request.inputs["input_ids"].tolist() for request in asked] == [ids[1:]]
    assert below.states.shape == (2, 5, 16)
    again, _ = requested(looking_up(group.models[0], store, ids), ids)
    assert not again


def test_different_examples_of_all_runs_are_computed_once_and_kept_by_the_first(group):
    requests = []
    for model, name in zip(group.models, ("long", "long"), strict=True):
        part = looking_up(model, Kept(), IDS[name])
        requests += requested(part, IDS[name])[0]
    part = looking_up(group.models[1], Kept(), IDS["short"])
    requests += requested(part, IDS["short"])[0]
    seen = []
    embed = group.stacked._model.model.embed_tokens
    embed.register_forward_hook(lambda module, args, output: seen.append(args[0].tolist()))
    answers = group.stacked.hidden_states(requests)
    assert seen == [[*IDS["long"], [5, 6, 7, 0, 0]]], "three different examples, in one pass"
    assert [[one.is_first for one in each] for each in answers] == [
        [True, True],
        [False, False],
        [True],
    ]
    for each, name in zip(answers, ("long", "long", "short"), strict=True):
        for one, expected in zip(each, expected_states(group.base, IDS[name]), strict=True):
            torch.testing.assert_close(one.states, expected, rtol=1e-5, atol=1e-6)


def test_a_pass_with_kept_states_has_the_outputs_and_gradients_of_each_run_alone(group):
    passes, alone = [], []
    for number, (model, ids) in enumerate(zip(group.models, IDS.values(), strict=True)):
        hidden = backbone_of(model)(input_ids=torch.tensor(ids)).last_hidden_state
        hidden.pow(3).sum().backward()
        trained = [p for p in model.parameters() if p.requires_grad]
        alone.append((hidden.detach(), [p.grad for p in trained]))
        model.zero_grad()
        blocks = find_frozen_blocks(model)
        below = Below(blocks, BlockOutput(), expected_states(group.base, ids))
        inputs = {"input_ids": torch.tensor(ids)}
        passes.append(Pass(f"run-{number}", f"run-{number}", inputs, True, None, below))
    calls = []
    group.stacked._model.model.layers[0].mlp.register_forward_hook(lambda *_: calls.append(1))
    outputs, leaves = group.stacked.forward(passes, [ProcessState.current() for _ in passes])
    for output in outputs:
        output.last_hidden_state.pow(3).sum().backward()
    leaves.backward()
    assert not calls, "the blocks below do not run"
    for model, output, (hidden, gradients) in zip(group.models, outputs, alone, strict=True):
        torch.testing.assert_close(output.last_hidden_state, hidden, rtol=1e-4, atol=1e-5)
        trained = [p for p in model.parameters() if p.requires_grad]
        for parameter, expected in zip(trained, gradients, strict=True):
            error = (parameter.grad - expected).abs().max()
            assert error <= 1e-4 * expected.abs().max()


def test_without_frozen_blocks_or_a_cache_all_blocks_run(group):
    inputs = {"input_ids": torch.tensor(IDS["short"])}

    def never(request: Examples):
        raise AssertionError(request)

    assert below_of(FrozenPart(), inputs, None, (), never) is None
    blocks = find_frozen_blocks(group.models[0])
    assert below_of(FrozenPart((), blocks), inputs, None, (), never) is None
    quiet = below_of(FrozenPart((), blocks, True), inputs, None, (), never)
    assert quiet.states is None and quiet.blocks is blocks

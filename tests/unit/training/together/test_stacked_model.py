"""One model with the adapters of all runs: each gets its part of the output and its gradients."""

import pytest
import torch
from torch.nn.attention import SDPBackend

from lorakit import LoraConfig, add_adapter
from lorakit.models.same_weights import copy_over_same_weights
from lorakit.training.together import stacked_model
from lorakit.training.together.process_state import ProcessState
from lorakit.training.together.stacked_model import Pass, StackedModel, backbone_of
from tiny_models import VOCABULARY, assert_untouched, llama, snapshot
from tiny_models.quantized import FOUR, quantized

SIZES = ((2, 5), (1, 8))


def members_over(base):
    members = []
    for number, _ in enumerate(SIZES):
        model = copy_over_same_weights(base)
        torch.manual_seed(number)
        add_adapter(model, LoraConfig(r=2 + number, target_modules=["q_proj", "down_proj"]))
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=0.3)
        members.append(model.train())
    return members


def passes(has_graph=True, adapters=("run-0", "run-1")):
    found = []
    for number, (size, adapter) in enumerate(zip(SIZES, adapters, strict=True)):
        ids = torch.randint(1, VOCABULARY, size, generator=torch.Generator().manual_seed(number))
        found.append(Pass(f"run-{number}", adapter, {"input_ids": ids}, has_graph, None))
    return found


def gradients(model):
    return [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("build", [llama, lambda: quantized(llama(), **FOUR)], ids=["32", "4 bits"])
def test_outputs_and_gradients_are_those_of_each_run_alone(build):
    base = build().requires_grad_(False)
    before = snapshot(base)
    members = members_over(base)
    alone = []
    for model, one in zip(members, passes(), strict=True):
        hidden = backbone_of(model)(**one.inputs).last_hidden_state
        hidden.pow(3).sum().backward()  # the sum of squares of a normalized state is constant
        alone.append((hidden.detach(), gradients(model)))
        model.zero_grad()
    group = StackedModel(base, torch.device("cpu"))
    for number, model in enumerate(members):
        group.attach(f"run-{number}", model)
    states = [ProcessState.current() for _ in members]
    outputs, leaves = group.forward(passes(), states)
    for output in outputs:
        output.last_hidden_state.pow(3).sum().backward()
    assert not gradients(members[0]), "the gradients arrive with the pass of all"
    leaves.backward()
    for (hidden, expected), output, model in zip(alone, outputs, members, strict=True):
        torch.testing.assert_close(output.last_hidden_state, hidden, rtol=1e-4, atol=1e-5)
        for got, wanted in zip(gradients(model), expected, strict=True):
            # Sums in another order: against the largest entry, as small ones may cancel out.
            assert (got - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    assert_untouched(base, before)


def test_a_run_without_gradients_adds_none():
    base = llama()
    members = members_over(base)
    group = StackedModel(base, torch.device("cpu"))
    for number, model in enumerate(members):
        group.attach(f"run-{number}", model)
    outputs, leaves = group.forward(passes(), [ProcessState.current() for _ in members])
    outputs[1].last_hidden_state.sum().backward()
    leaves.backward()
    assert all(not gradient.any() for gradient in gradients(members[0]))
    assert any(gradient.any() for gradient in gradients(members[1]))


def test_rows_of_the_base_alone_and_runs_that_have_left():
    base = llama().eval()
    members = members_over(base)
    group = StackedModel(base, torch.device("cpu"))
    group.attach("run-0", members[0])
    with torch.no_grad():
        expected = backbone_of(base)(**passes()[1].inputs).last_hidden_state
    states = [ProcessState.current() for _ in members]
    outputs, _ = group.forward(passes(has_graph=False, adapters=("run-0", None)), states)
    torch.testing.assert_close(outputs[1].last_hidden_state, expected, rtol=1e-4, atol=1e-5)
    group.detach("run-0")
    group.attach("run-1", members[1])
    outputs, _ = group.forward(passes(has_graph=False, adapters=(None, "run-1")), states)
    assert not torch.equal(outputs[1].last_hidden_state, expected)


@pytest.fixture
def formulas(monkeypatch):
    """Count how often a pass asks for attention by products of all heads."""
    asked, choose = [], stacked_model.sdpa_kernel
    monkeypatch.setattr(
        stacked_model, "sdpa_kernel", lambda kind: (asked.append(kind), choose(kind))[1]
    )
    return asked


def forward_of(group, found):
    return group.forward(found, [ProcessState.current() for _ in found])


def test_short_attention_in_bfloat16_is_computed_for_all_heads_at_once(formulas):
    base = llama().requires_grad_(False)
    group = StackedModel(base.bfloat16(), torch.device("cpu"))
    for number, model in enumerate(members_over(base)):
        group.attach(f"run-{number}", model)
    chosen, _ = forward_of(group, passes())
    assert formulas == [SDPBackend.MATH]
    forward_of(group, passes(has_graph=False))
    group._drops = True  # torch's other way draws other numbers
    usual, _ = forward_of(group, passes())
    assert len(formulas) == 1
    for one, other in zip(chosen, usual, strict=True):
        torch.testing.assert_close(
            one.last_hidden_state, other.last_hidden_state, rtol=0.05, atol=0.05
        )


def test_attention_in_float32_stays_as_it_is(formulas):
    base = llama().requires_grad_(False)
    group = StackedModel(base, torch.device("cpu"))
    for number, model in enumerate(members_over(base)):
        group.attach(f"run-{number}", model)
    forward_of(group, passes())
    assert formulas == []

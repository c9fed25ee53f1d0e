"""In which order requests are served, and what runs get that ask at the same time."""

import pytest
import torch
from torch import nn

from lorakit import LoraConfig, add_adapter
from lorakit.models.same_weights import copy_over_same_weights
from lorakit.training.losses.find_output_loss import find_output_loss
from lorakit.training.losses.token_loss import TokenLoss
from lorakit.training.together.meeting_point import meeting_in_forward
from lorakit.training.together.shared_passes import SharedPasses
from lorakit.training.together.stacked_model import StackedModel
from lorakit.training.together.turns import Turn
from tiny_models import VOCABULARY, llama


class Run:
    """A run with a tiny model; `work` is called with it in its turn."""

    def __init__(self, passes, base, number, work):
        self.model = copy_over_same_weights(base)
        torch.manual_seed(number)
        add_adapter(self.model, LoraConfig(r=2, target_modules=["q_proj"]))
        self.model.train()
        self.ids = torch.randint(
            1, VOCABULARY, (1, 6), generator=torch.Generator().manual_seed(number)
        )
        self.turn = Turn(f"run-{number}", lambda: work(self))
        self.seat = passes.join(self.turn, self.model, base)
        self.output, _ = find_output_loss(self.model, {"input_ids": self.ids}, self.ids)

    def hidden(self):
        with meeting_in_forward(self.model, self.seat):
            return self.model.model(input_ids=self.ids).last_hidden_state


@pytest.fixture
def served(monkeypatch):
    """Record the rows of each forward pass of all, and whether it has a graph."""
    seen, forward = [], StackedModel.forward

    def recording(self, passes, states):
        seen.append((sorted(one.run for one in passes), passes[0].has_graph))
        return forward(self, passes, states)

    monkeypatch.setattr(StackedModel, "forward", recording)
    return seen


def train(*works):
    passes, base = SharedPasses(), llama().requires_grad_(False)
    runs = [Run(passes, base, number, work) for number, work in enumerate(works)]
    passes.start(*(run.turn for run in runs))
    for run in runs:
        assert run.turn.is_over.wait(30)
    return passes, runs


def step(run):
    run.hidden().sum().backward()
    run.seat.backward()


def test_an_evaluation_comes_first_and_the_others_stay_in_step(served):
    def evaluates(run):
        with torch.no_grad():
            run.hidden()
            run.hidden()
        step(run)

    train(step, evaluates, step)
    assert served == [
        (["run-1"], False),
        (["run-1"], False),
        (["run-0", "run-1", "run-2"], True),
    ]


def test_losses_of_all_runs_are_those_of_each(served):
    def work(run):
        hidden = run.hidden()[0, :-1].detach().requires_grad_()
        targets = run.ids[0, 1:]
        losses = run.seat.losses(run.output, TokenLoss(), hidden, targets)
        losses.sum().backward()
        expected, alone = run.output, hidden.detach().requires_grad_()
        total = expected.sum(alone, targets, TokenLoss())
        total.backward()
        return losses.sum().item(), total.item(), hidden.grad, alone.grad

    _, runs = train(work, work)
    for run in runs:
        assert run.turn.error is None
        got, expected, gradient, wanted = run.turn.result
        assert got == pytest.approx(expected, rel=1e-5)
        torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-6)


def test_an_error_in_a_pass_is_that_of_the_run_that_causes_it(served):
    def wrong(run):
        run.ids = run.ids + 10_000
        step(run)

    _, runs = train(step, wrong)
    assert runs[0].turn.error is None
    assert isinstance(runs[1].turn.error, IndexError)
    assert [names for names, _ in served] == [["run-0", "run-1"], ["run-0"], ["run-1"]]


def test_a_run_that_leaves_between_forward_and_backward_takes_nothing_with_it(served):
    def leaves(run):
        run.hidden()
        raise ValueError("no number")

    passes, runs = train(step, leaves)
    passes.leave(runs[1].turn)
    gradients = [p.grad for p in runs[0].model.parameters() if p.requires_grad]
    assert any(gradient is not None and gradient.any() for gradient in gradients)
    assert all(p.grad is None or not p.grad.any() for p in runs[1].model.parameters())
    assert isinstance(runs[0].model, nn.Module)


def test_a_batch_of_many_tokens_runs_alone_but_waits_at_the_end_of_its_step(served, monkeypatch):
    from lorakit.training.together import shared_passes

    monkeypatch.setattr(shared_passes, "_GAINING_TOKENS", 12)

    def large(run):
        run.ids = run.ids.repeat(2, 1)
        step(run)

    _, runs = train(step, large)
    assert [run.turn.error for run in runs] == [None, None]
    assert served == [(["run-0"], True)]
    for run in runs:
        found = [p.grad for n, p in run.model.named_parameters() if n.endswith("lora_B")]
        assert all(gradient.any() for gradient in found)

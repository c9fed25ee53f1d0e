"""Groups under any order of calls: results, gradients and saved tensors do not depend on it."""

import gc
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from lorakit import LoraConfig, add_adapter
from tiny_models import randomize_
from tiny_models.siblings import NAMES, Attention, adapted, step_, ungrouped
from tolerances import largest_error

INPUTS = 3
CALLS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, INPUTS - 1)), min_size=1, max_size=7)
MODES = st.sampled_from(["plain", "non-reentrant", "reentrant"])
PROGRAMS = st.lists(st.tuples(MODES, CALLS), min_size=1, max_size=4)


class Programmed(nn.Module):
    """Calls its layers as a program says: segments of (layer, input), each in a checkpoint or not.

    The inputs of a segment are x, a tensor that all segments share, and one that it makes itself.
    """

    def __init__(self, program, hooked=()):
        super().__init__()
        torch.manual_seed(0)
        self.program = program
        for number, name in enumerate(NAMES):
            setattr(self, name, nn.Linear(4, 4))
            if number in hooked:
                getattr(self, name).register_forward_pre_hook(lambda module, args: None)

    def segment(self, calls, x, shared):
        inputs = (x, shared, x.sin())
        total = x
        for layer, read in calls:
            total = total.tanh() + getattr(self, NAMES[layer])(inputs[read])
        return total

    def forward(self, x, checkpoints=True):
        shared = x.cos()
        for mode, calls in self.program:
            if mode == "plain" or not checkpoints:
                x = self.segment(calls, x, shared)
            else:
                x = checkpoint(self.segment, calls, x, shared, use_reentrant=mode == "reentrant")
        return x


def made(program, hooked, dropout=0.0):
    model = Programmed(program, hooked)
    add_adapter(model, LoraConfig(r=2, target_modules=NAMES, lora_dropout=dropout))
    return randomize_(model).train()


def trained(model, checkpoints, steps=3, batches=2):
    """Return the output and the gradients of each of some batches, accumulated in each step."""
    torch.manual_seed(1)
    seen = []
    for _ in range(steps):
        model.zero_grad()
        for _ in range(batches):
            x = torch.randn(3, 4, requires_grad=True)
            out = model(x, checkpoints)
            out.square().sum().backward()
            grads = [p.grad for p in model.parameters() if p.grad is not None]
            seen += [out.detach(), x.grad, *(grad.clone() for grad in grads)]
        step_(model)
    return seen


@settings(max_examples=20, deadline=None)
@given(PROGRAMS, st.sets(st.integers(0, 2), max_size=2), st.booleans())
def test_results_and_gradients_are_those_of_layers_alone(program, hooked, early_stop):
    with set_checkpoint_early_stop(early_stop):  # off, both passes count what they save
        got = trained(made(program, hooked), checkpoints=True)
    expected = trained(ungrouped(made(program, hooked)), checkpoints=False)
    assert len(got) == len(expected)
    for one, other in zip(got, expected, strict=True):
        assert largest_error(one, other) < 1e-4


@settings(max_examples=25, deadline=None)
@given(PROGRAMS, st.sets(st.integers(0, 2), max_size=2))
def test_both_passes_of_a_checkpoint_drop_the_same_elements(program, hooked):
    model = made(program, hooked, dropout=0.5)
    passes = {}
    plain_segment = model.segment

    def recorded(calls, x, shared):
        outputs = []
        passes.setdefault(id(calls), []).append(outputs)
        handles = [
            getattr(model, name).register_forward_hook(
                lambda m, args, h: outputs.append(h.detach())
            )
            for name in NAMES
        ]
        try:
            return plain_segment(calls, x, shared)
        finally:
            for handle in handles:
                handle.remove()

    model.segment = recorded
    for _ in range(4):
        passes.clear()
        x = torch.randn(3, 4, requires_grad=True)
        model(x).square().sum().backward()
        for mode, calls in program:
            if mode != "plain":
                first, second = passes[id(calls)]
                for one, other in zip(first, second, strict=False):  # the second may stop early
                    assert torch.equal(one == 0, other == 0)
                    assert torch.allclose(one, other, atol=1e-5)
        step_(model)


ORDERS = [(1, 2, 0), (2, 1, 0), (0, 2, 1), (1, 0, 2)]


@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_any_order_becomes_one_computation_after_a_step(order, group_sizes):
    model = made([("non-reentrant", [(layer, 0) for layer in order])], ())
    trained(model, checkpoints=True, steps=1)
    first = [*group_sizes]
    assert sum(first) == 3 * 4 and first == first[: len(first) // 4] * 4  # both passes alike
    assert (len(first) == 4) == (order[0] == 0)
    group_sizes.clear()
    trained(model, checkpoints=True, steps=1)
    assert group_sizes == [3] * 4


def test_nothing_is_kept_after_a_second_pass_that_stops_early():
    # After the last saved tensor, of exp, the second pass stops: k and v are never read.
    model = adapted(Attention())

    def run(x):
        return model.q_proj(x).exp(), model.k_proj(x), model.v_proj(x)

    x = torch.randn(4, 8, requires_grad=True)
    q, k, v = checkpoint(run, x, use_reentrant=False)
    (q.sum() + k.square().sum() + v.sum()).backward()
    assert not model.q_proj.siblings._waiting


def test_nothing_is_kept_of_a_checkpoint_that_calls_one_layer():
    model = adapted(Attention())
    x = torch.randn(4, 8, requires_grad=True) * 1
    out = checkpoint(model.q_proj, x, use_reentrant=False)
    out.square().sum().backward()
    assert not model.q_proj.siblings._waiting
    kept = weakref.ref(x)
    del x, out
    gc.collect()
    assert kept() is None


def test_one_input_for_two_checkpoints():
    # The second begins with what the first has left, and is made again on its own.
    model = adapted(Attention(), lora_dropout=0.4).train()
    x = torch.randn(4, 8, requires_grad=True)
    for reentrant in (True, False):
        for _ in range(3):
            q = checkpoint(model.q_proj, x, use_reentrant=reentrant)
            rest = checkpoint(
                lambda x: model.v_proj(x).tanh() + model.k_proj(x), x, use_reentrant=reentrant
            )
            (q + rest).square().sum().backward()
            step_(model)


@pytest.mark.parametrize("name", ["convbert", "canine", "luke"])
def test_families_that_call_the_key_first(name):
    import transformers

    sizes = {
        "vocab_size": 32,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "max_position_embeddings": 32,
    }
    extra = {
        "convbert": {"embedding_size": 16, "head_ratio": 1},
        "canine": {
            "num_hash_buckets": 32,
            "local_transformer_stride": 8,
            "bos_token_id": 1,
            "eos_token_id": 2,
        },
        "luke": {"entity_vocab_size": 8, "entity_emb_size": 8},
    }[name]
    kind = {"convbert": "ConvBert", "canine": "Canine", "luke": "Luke"}[name]
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}Model")(
        getattr(transformers, f"{kind}Config")(**(sizes | extra))
    )
    add_adapter(model, LoraConfig(r=2, target_modules=["query", "key", "value"], lora_dropout=0.3))
    randomize_(model).train()
    ids = torch.arange(16)[None] + 1
    seen = []
    for checkpoints in (False, True):
        if checkpoints:
            model.activation_checkpointing_enable({"use_reentrant": False})
            model.enable_input_require_grads()
        for _ in range(2):
            torch.manual_seed(3)
            model.zero_grad()
            model(input_ids=ids).last_hidden_state.square().sum().backward()
            seen.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert seen[-1]
    for one, other in zip(seen[-1], seen[-2], strict=True):
        assert largest_error(one, other) < 1e-5

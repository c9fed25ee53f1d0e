"""Groups of layers over many passes: who leaves, what is kept, what hooks and checkpoints do."""

import gc
import weakref

import pytest
import torch
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils.checkpoint import checkpoint

from lorakit import LoraConfig, add_adapter, set_adapter
from tiny_models import assert_same_gradients, gradients, llama, tokens
from tiny_models.siblings import NAMES, Attention, adapted, step_, ungrouped
from tolerances import largest_error


def pattern(model, group_sizes, steps=5, change=step_):
    """Return what each pass of a number of steps group_sizes, the last ones being all alike."""
    passes = []
    for _ in range(steps):
        group_sizes.clear()
        gradients(model, torch.randn(4, 8))
        passes.append([*group_sizes])
        change(model)
    return passes


@pytest.mark.parametrize(
    ("reads", "at_first", "then", "left"),
    [
        ("xxy", [3, 1], [2], ["v_proj"]),  # DETR adds positions to what query and key read
        ("yxx", [3, 2], [2], ["q_proj"]),  # cross-attention: not k and v, the leader is at fault
        ("xyx", [3, 2, 1], [], ["q_proj", "k_proj"]),
    ],
)
def test_layers_that_cause_misses_leave(reads, at_first, then, left, group_sizes):
    model = adapted(Attention(reads))
    before = [getattr(model, name).siblings for name in NAMES]
    passes = pattern(model, group_sizes)
    assert passes[:3] == [at_first] * 3
    assert [[c for c in one if c > 1] for one in passes[4:]] == [then]
    assert [name for name in NAMES if getattr(model, name).siblings is None] == left
    stayed = [getattr(model, name) for name in NAMES if name not in left]
    assert before[0].members == stayed
    assert_same_gradients(gradients(model, x := torch.randn(4, 8)), gradients(ungrouped(model), x))


def test_no_layer_leaves_between_two_passes_with_the_same_factors(group_sizes):
    # The second could be the recomputation of a checkpoint.
    model = adapted(Attention("xxy"))
    assert pattern(model, group_sizes, steps=8, change=lambda model: None) == [[3, 1]] * 8


def test_layers_with_more_hits_than_misses_stay(group_sizes):
    model = adapted(Attention())
    pattern(model, group_sizes, steps=6)
    model.reads = "xxy"
    passes = pattern(model, group_sizes, steps=8)
    assert passes == [[3, 1]] * 6 + [[2]] * 2


def test_a_layer_of_which_siblings_are_not_called_leaves():
    model = adapted(Attention())
    for _ in range(4):
        model.q_proj(torch.randn(4, 8)).sum().backward()
        step_(model)
    model.q_proj(torch.randn(4, 8))
    assert model.q_proj.siblings is None
    assert model.k_proj.siblings.members == [model.k_proj, model.v_proj]


def steps(reads, run, steps=6):
    """Train a few steps with dropout; return the gradients of each."""
    model = adapted(Attention(reads), lora_dropout=0.4).train()
    torch.manual_seed(5)
    seen = []
    for _ in range(steps):
        x = torch.randn(4, 8, requires_grad=True)
        model.zero_grad()
        run(model, x).square().sum().backward()
        named = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
        seen.append({name: grad.clone() for name, grad in (named | {"x": x.grad}).items()})
        step_(model)
    return seen


@pytest.mark.parametrize("reads", ["xxx", "xxy", "yxx"])
@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "non-reentrant"])
def test_gradient_checkpointing_gives_the_same_gradients(reads, reentrant):
    kept = steps(reads, lambda model, x: model(x))
    made_again = steps(reads, lambda model, x: checkpoint(model, x, use_reentrant=reentrant))
    for one, other in zip(made_again, kept, strict=True):
        assert one.keys() == other.keys()
        assert all(largest_error(one[name], other[name]) < 1e-5 for name in one)


def waiting(model):
    return [getattr(model, name).siblings._waiting for name in NAMES]


@pytest.mark.parametrize("called", [NAMES, NAMES[:1], NAMES[:2], NAMES[1:]], ids=str)
def test_nothing_is_kept_beyond_backward(called):
    model = adapted(Attention())
    x = torch.randn(4, 8, requires_grad=True) * 1
    outputs = [getattr(model, name)(x) for name in called]
    kept = [weakref.ref(x), *(weakref.ref(h) for h in outputs)]
    kept += [weakref.ref(result.output) for result in model.q_proj.siblings._waiting.values()]
    assert len(kept) == 1 + 3 - NAMES.index(called[0])
    sum(h.square().sum() for h in outputs).backward()
    del outputs, x
    gc.collect()
    assert [ref() for ref in kept] == [None] * len(kept)
    assert not any(waiting(model))


def test_a_pass_without_backward_is_kept_until_the_next_one_at_most():
    model = adapted(Attention())
    kept = []
    for _ in range(2):
        x = torch.randn(4, 8, requires_grad=True) * 1
        model.q_proj(x)
        kept.append(weakref.ref(x))
        del x
    gc.collect()
    assert kept[0]() is None


def test_backward_between_two_layers_on_one_activation():
    # Backward of the first frees what the others' results, made by the same node, would need.
    model = adapted(Attention())
    x = torch.randn(4, 8)
    for name in NAMES:
        getattr(model, name)(x).square().sum().backward()
    got = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    ungrouped(model).zero_grad()
    for name in NAMES:
        getattr(model, name)(x).square().sum().backward()
    assert all(largest_error(got[n], model.get_parameter(n).grad) < 1e-6 for n in got)


def test_a_hook_that_exchanges_the_input(group_sizes):
    model = adapted(Attention())
    model.k_proj.register_forward_pre_hook(lambda module, inputs: (inputs[0] + 1,))
    x = torch.randn(4, 8)
    got = model(x)
    assert group_sizes == [2, 1]  # k does not take part
    assert torch.allclose(got, ungrouped(model)(x), atol=1e-6)


def test_a_hook_on_all_modules_that_exchanges_the_input():
    model = adapted(Attention())
    x = torch.randn(4, 8)
    handle = register_module_forward_pre_hook(
        lambda module, args: (args[0] + 1,) if module is model.k_proj else None
    )
    try:
        got = model(x)
        assert torch.allclose(got, ungrouped(model)(x), atol=1e-6)
    finally:
        handle.remove()


@pytest.mark.parametrize("name", NAMES)
def test_backward_hooks(name, group_sizes):
    # They wrap the input of their layer, so that it is another tensor than its siblings read.
    model = adapted(Attention())
    seen = []
    layer = getattr(model, name)
    layer.register_full_backward_hook(lambda module, grad_x, grad_h: seen.append(grad_x[0].clone()))
    x = torch.randn(4, 8, requires_grad=True)
    got = gradients(model, x)
    assert group_sizes == ([1, 2] if name == "q_proj" else [2, 1])
    assert_same_gradients(got, gradients(ungrouped(model), x))
    assert len(seen) == 2 and largest_error(seen[0], seen[1]) < 1e-6


def test_hooks_on_results_run_for_each_layer():
    model = adapted(Attention())
    seen = []
    for name in NAMES:
        getattr(model, name).register_forward_hook(lambda m, args, h, name=name: seen.append(name))
    model(torch.randn(4, 8))
    assert seen == NAMES


def test_layers_that_cannot_be_computed_ahead_do_not_join(group_sizes):
    model = adapted(Attention())
    x = torch.randn(4, 8)
    model.k_proj._hf_hook = object()  # accelerate brings its weights only when it is called
    model(x)
    assert group_sizes == [2, 1]
    model.v_proj.bfloat16()  # the weight is, and not the leader's
    model.q_proj(x)
    assert group_sizes == [2, 1, 1]
    set_adapter(model, None)
    model.q_proj.activate(("default",))
    del model.k_proj._hf_hook
    model.q_proj(x)
    assert group_sizes == [2, 1, 1, 1]


def test_on_the_meta_device():
    with torch.device("meta"):
        model = llama(num_hidden_layers=1)
        add_adapter(model, LoraConfig(r=2))
        assert model(input_ids=torch.zeros(1, 4, dtype=torch.long)).logits.shape == (1, 4, 32)


def test_weights_made_in_inference_mode():
    with torch.inference_mode():
        model = llama(num_hidden_layers=1)
        add_adapter(model, LoraConfig(r=2))
        expected = model(**tokens()).logits
    with torch.no_grad():
        assert torch.equal(model(**tokens()).logits, expected)

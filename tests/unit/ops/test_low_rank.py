import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lorakit.errors import DtypeError, LorakitError, ShapeError
from lorakit.ops import LowRankTerm, apply_keep_mask, low_rank_linear
from lorakit.ops.reference import low_rank_gradients_reference, low_rank_linear_reference
from tolerances import GRADIENT_TOLERANCE, TOLERANCE, largest_error

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
HALF = [torch.float16, torch.bfloat16]


def operands(*shape, out=5, r=3, dtype=torch.float64, factor_dtype=None, seed=0):
    """Return x of `shape`, W0, bias, A and B, all of a size near one."""
    torch.manual_seed(seed)
    inside = shape[-1]
    x = torch.randn(shape, dtype=torch.float64).to(dtype)
    W0 = (torch.randn(out, inside, dtype=torch.float64) / inside**0.5).to(dtype)
    bias = torch.randn(out, dtype=torch.float64).to(dtype)
    A = (torch.randn(r, inside, dtype=torch.float64) / inside**0.5).to(factor_dtype or dtype)
    B = torch.randn(out, r, dtype=torch.float64).to(factor_dtype or dtype)
    return x, W0, bias, A, B


def wide(*tensors):
    return [None if t is None else t.detach().double() for t in tensors]


SHAPES = {
    "vector": (4,),
    "matrix": (7, 4),
    "batch": (2, 3, 4),
    "four dimensions": (2, 1, 3, 4),
    "one token": (1, 4),
    "zero rows": (0, 4),
    "zero rows inside": (2, 0, 4),
    "one input feature": (3, 1),
}


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("r", [1, 3])
@pytest.mark.parametrize("with_bias", [True, False])
def test_equals_the_reference_for_every_shape(shape, r, with_bias):
    x, W0, bias, A, B = operands(*shape, r=r)
    bias = bias if with_bias else None
    got = low_rank_linear(x, W0, bias, [LowRankTerm(A, B, 0.7)])
    expected = low_rank_linear_reference(x, W0, bias, A, B, 0.7)
    assert got.shape == (*shape[:-1], 5)
    assert largest_error(got, expected) <= TOLERANCE[torch.float64]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_output_and_gradients_are_right_in_every_dtype(dtype):
    x, W0, bias, A, B = operands(9, 16, dtype=dtype)
    for leaf in (x, A, B):
        leaf.requires_grad_()
    h = low_rank_linear(x, W0, bias, [LowRankTerm(A, B, 2.0)])
    grad_h = torch.randn(9, 5, dtype=torch.float64).to(dtype)
    h.backward(grad_h)
    assert h.dtype == dtype
    assert (
        largest_error(h, low_rank_linear_reference(*wide(x, W0, bias, A, B), 2.0))
        <= TOLERANCE[dtype]
    )
    expected = low_rank_gradients_reference(*wide(x, W0, A, B), 2.0, grad_h.double())
    for leaf, gradient in zip((x, A, B), expected, strict=True):
        assert leaf.grad.dtype == dtype
        assert largest_error(leaf.grad, gradient) <= GRADIENT_TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_float32_factors_work_on_a_half_precision_base(dtype):
    x, W0, bias, A, B = operands(9, 16, dtype=dtype, factor_dtype=torch.float32)
    for leaf in (x, A, B):
        leaf.requires_grad_()
    h = low_rank_linear(x, W0, bias, [LowRankTerm(A, B, 2.0)])
    grad_h = torch.randn(9, 5).to(dtype)
    h.backward(grad_h)
    assert h.dtype == x.grad.dtype == dtype
    assert A.grad.dtype == B.grad.dtype == torch.float32
    expected = low_rank_gradients_reference(*wide(x, W0, A, B), 2.0, grad_h.double())
    for leaf, gradient in zip((x, A, B), expected, strict=True):
        assert largest_error(leaf.grad, gradient) <= GRADIENT_TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("backward_inside", [False, True], ids=["outside", "inside"])
def test_autocast_computes_as_a_plain_linear_layer_does(dtype, backward_inside):
    x, W0, bias, A, B = operands(9, 16, dtype=torch.float32)
    for leaf in (x, A, B):
        leaf.requires_grad_()
    with torch.autocast("cpu", dtype=dtype):
        plain = F.linear(x, W0, bias)
        h = low_rank_linear(x, W0, bias, [LowRankTerm(A, B, 0.5)])
        if backward_inside:
            h.float().sum().backward()
    if not backward_inside:
        h.float().sum().backward()
    assert h.dtype == plain.dtype == dtype
    assert x.grad.dtype == A.grad.dtype == B.grad.dtype == torch.float32
    assert (
        largest_error(h, low_rank_linear_reference(*wide(x, W0, bias, A, B), 0.5))
        <= TOLERANCE[dtype]
    )
    expected = low_rank_gradients_reference(*wide(x, W0, A, B), 0.5, torch.ones(9, 5).double())
    for leaf, gradient in zip((x, A, B), expected, strict=True):
        assert largest_error(leaf.grad, gradient) <= GRADIENT_TOLERANCE[dtype]


def test_backward_under_autocast_of_a_forward_without_it():
    x, W0, _, A, B = operands(9, 16, dtype=torch.float32)
    for leaf in (x, A, B):
        leaf.requires_grad_()
    h = low_rank_linear(x, W0, None, [LowRankTerm(A, B, 0.5)])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        h.sum().backward()
    expected = low_rank_gradients_reference(*wide(x, W0, A, B), 0.5, torch.ones(9, 5).double())
    for leaf, gradient in zip((x, A, B), expected, strict=True):
        assert largest_error(leaf.grad, gradient) <= GRADIENT_TOLERANCE[torch.float32]


def test_autocast_leaves_float64_alone_as_a_plain_linear_layer_does():
    x, W0, bias, A, B = operands(9, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert F.linear(x, W0, bias).dtype == torch.float64
        h = low_rank_linear(x, W0, bias, [LowRankTerm(A, B, 0.5)])
    assert h.dtype == torch.float64
    assert largest_error(h, low_rank_linear_reference(x, W0, bias, A, B, 0.5)) <= 1e-12


@pytest.mark.parametrize("p", [0.0, 0.4])
@pytest.mark.parametrize("terms", [1, 3])
@pytest.mark.parametrize("frozen", [True, False])
def test_gradcheck(p, terms, frozen):
    x, W0, bias, _, _ = operands(2, 3, 4)
    factors = [operands(1, 4, r=i + 1, seed=i)[3:] for i in range(terms)]
    seeds = [torch.tensor(11 * (i + 1)) for i in range(terms)]
    leaves = [x.requires_grad_()]
    leaves += [t.requires_grad_() for pair in factors for t in pair]
    leaves += [] if frozen else [W0.requires_grad_(), bias.requires_grad_()]

    def op(x, *rest):
        pairs = [rest[2 * i : 2 * i + 2] for i in range(terms)]
        return low_rank_linear(
            x,
            W0,
            bias,
            [LowRankTerm(A, B, 0.5 + i, p, seeds[i]) for i, (A, B) in enumerate(pairs)],
        )

    if frozen:
        assert torch.autograd.gradcheck(op, leaves)
    else:

        def op_with_base(*rest):
            nonlocal W0, bias
            *rest, W0, bias = rest
            return op(*rest)

        assert torch.autograd.gradcheck(op_with_base, leaves)


def test_gradients_are_the_closed_forms_of_c10():
    x, W0, _, A, B = operands(6, 4)
    A.requires_grad_()
    B.requires_grad_()
    grad_h = torch.randn(6, 5, dtype=torch.float64)
    low_rank_linear(x, W0, None, [LowRankTerm(A, B, 1.5)]).backward(grad_h)
    G, X = grad_h.T, x.T  # one column per token, as the claim is written
    assert largest_error(B.grad, 1.5 * G @ X.T @ A.T) <= 1e-12
    assert largest_error(A.grad, 1.5 * B.T @ G @ X.T) <= 1e-12


@pytest.mark.parametrize("p", [0.0, 0.5])
def test_several_terms_add_up_and_each_has_its_own_mask(p):
    x, W0, bias, A, B = operands(6, 8)
    _, _, _, A2, B2 = operands(6, 8, r=2, seed=1)
    seeds = torch.tensor(3), torch.tensor(4)
    h = low_rank_linear(
        x, W0, bias, [LowRankTerm(A, B, 0.5, p, seeds[0]), LowRankTerm(A2, B2, 2.0, p, seeds[1])]
    )
    dropped = [apply_keep_mask(x, p, seed) if p else x for seed in seeds]
    expected = F.linear(x, W0, bias)
    expected = expected + 0.5 * dropped[0] @ A.T @ B.T + 2.0 * dropped[1] @ A2.T @ B2.T
    assert largest_error(h, expected) <= 1e-12


VIEWS = {
    "transposed": lambda t: t.transpose(0, 1).contiguous().transpose(0, 1),
    "strided": lambda t: torch.stack([t, t], -1)[..., 0],
    "expanded": lambda t: t[:1].expand(*t.shape),
    "permuted batch": lambda t: t.permute(1, 0, 2),
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_non_contiguous_inputs_and_gradients(view):
    x, W0, bias, A, B = operands(3, 4, 6)
    x.requires_grad_()
    A.requires_grad_()
    seen = view(x)
    assert not seen.is_contiguous()
    h = low_rank_linear(seen, W0, bias, [LowRankTerm(A, B, 0.5)])
    h.sum().backward()  # an expanded gradient
    got = x.grad.clone(), A.grad.clone()
    x.grad = A.grad = None
    low_rank_linear_reference(view(x), W0, bias, A, B, 0.5).sum().backward()
    assert largest_error(got[0], x.grad) <= 1e-12
    assert largest_error(got[1], A.grad) <= 1e-12


def test_a_transposed_weight_view_does_as_well():
    x, W0, bias, A, B = operands(3, 6)
    stored = W0.t().contiguous()  # (in, out), as GPT-2 has it
    h = low_rank_linear(x, stored.t(), bias, [LowRankTerm(A, B, 0.5)])
    assert largest_error(h, low_rank_linear_reference(x, W0, bias, A, B, 0.5)) <= 1e-12


@pytest.mark.parametrize("needed", ["x", "A", "B"])
def test_only_the_gradients_asked_for_are_computed(needed):
    x, W0, _, A, B = operands(3, 6)
    leaves = {"x": x, "A": A, "B": B}
    leaves[needed].requires_grad_()
    low_rank_linear(x, W0, None, [LowRankTerm(A, B, 0.5)]).sum().backward()
    assert [name for name, leaf in leaves.items() if leaf.grad is not None] == [needed]
    got = leaves[needed].grad.clone()
    leaves[needed].grad = None
    low_rank_linear_reference(x, W0, None, A, B, 0.5).sum().backward()
    assert largest_error(got, leaves[needed].grad) <= 1e-12


@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 4), (4,)])
def test_the_output_may_be_changed_in_place(shape):
    x, W0, bias, A, B = operands(*shape)
    A.requires_grad_()
    term = LowRankTerm(A, B, 0.5)
    F.relu(low_rank_linear(x, W0, bias, [term]), inplace=True).sum().backward()
    got = A.grad.clone()
    A.grad = None
    F.relu(low_rank_linear_reference(x, W0, bias, A, B, 0.5)).sum().backward()
    assert largest_error(got, A.grad) <= 1e-12


@pytest.mark.parametrize("shape", [(7, 32), (2, 4, 32)])
@pytest.mark.parametrize("p", [0.0, 0.5])
@pytest.mark.parametrize("autocast", [False, True])
def test_saves_x_itself_the_weights_and_one_low_rank_tensor(shape, p, autocast):
    x, W0, bias, A, B = operands(*shape, out=48, r=3, dtype=torch.float32)
    for leaf in (x, A, B):
        leaf.requires_grad_()
    saved = []
    with (
        torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t),
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast),
    ):
        low_rank_linear(x, W0, bias, [LowRankTerm(A, B, 0.5, p, torch.tensor(5))])
    pointers = {t.data_ptr() for t in saved}
    assert {t.data_ptr() for t in (x, W0, A, B)} <= pointers
    ours = [t for t in saved if t.data_ptr() not in {t.data_ptr() for t in (x, W0, bias, A, B)}]
    tokens = x.numel() // 32
    seed = [1] if p else []
    assert sorted(t.numel() for t in ours) == [*seed, 3 * tokens]  # and u = drop(x) Aᵀ
    assert all(t.dtype != torch.bool for t in saved)


def test_a_frozen_layer_saves_nothing_without_gradients():
    x, W0, bias, A, B = operands(7, 8)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        low_rank_linear(x, W0, bias, [LowRankTerm(A, B, 0.5)])
    assert saved == []


def test_dropout_acts_on_the_low_rank_path_only():
    x, W0, bias, A, B = operands(200, 16)
    seed = torch.tensor(9)
    h = low_rank_linear(x, W0, bias, [LowRankTerm(A, B, 0.5, 0.3, seed)])
    expected = low_rank_linear_reference(
        x, W0, bias, A, B, 0.5, dropped_x=apply_keep_mask(x, 0.3, seed)
    )
    assert largest_error(h, expected) <= 1e-12
    silent = low_rank_linear(x, W0, bias, [LowRankTerm(A, torch.zeros_like(B), 0.5, 0.3, seed)])
    assert largest_error(silent, F.linear(x, W0, bias)) <= 1e-12


def test_zero_rows_give_zero_gradients():
    x, W0, bias, A, B = operands(0, 4)
    for leaf in (x, A, B):
        leaf.requires_grad_()
    low_rank_linear(x, W0, bias, [LowRankTerm(A, B, 0.5, 0.1, torch.tensor(1))]).sum().backward()
    assert x.grad.shape == (0, 4)
    assert A.grad.eq(0).all() and B.grad.eq(0).all()


def test_inference_mode():
    x, W0, bias, A, B = operands(3, 4)
    A.requires_grad_()
    with torch.inference_mode():
        h = low_rank_linear(x, W0, bias, [LowRankTerm(A, B, 1.0, 0.5, torch.tensor(1))])
    assert h.is_inference() and h.shape == (3, 5)


def test_runs_on_the_meta_device():
    with torch.device("meta"):
        x, W0, A, B = (torch.empty(s) for s in ((3, 4), (5, 4), (2, 4), (5, 2)))
    assert low_rank_linear(x, W0, None, [LowRankTerm(A, B, 1.0)]).shape == (3, 5)


def test_input_of_the_wrong_width_is_named():
    x, W0, bias, A, B = operands(2, 3, 4)
    with pytest.raises(ShapeError) as caught:
        low_rank_linear(x[..., :3], W0, bias, [LowRankTerm(A, B, 1.0)])
    assert str(caught.value) == (
        "The input of an adapted layer has shape (2, 3, 3), expected its last dimension to be 4, "
        "as the weight is (5, 4)."
    )


@pytest.mark.parametrize("case", ["A too wide", "B too long", "ranks differ"])
def test_factors_that_do_not_fit_are_named(case):
    x, W0, bias, A, B = operands(2, 4)
    A = torch.zeros(3, 6).double() if case == "A too wide" else A
    B = torch.zeros(7, 3).double() if case == "B too long" else B
    B = torch.zeros(5, 2).double() if case == "ranks differ" else B
    with pytest.raises(ShapeError) as caught:
        low_rank_linear(x, W0, bias, [LowRankTerm(A, B, 1.0)])
    message = str(caught.value)
    assert f"lora_A {tuple(A.shape)} and lora_B {tuple(B.shape)}" in message
    assert "(5, 4)" in message


def test_mixed_dtypes_outside_autocast_are_refused():
    x, W0, bias, A, B = operands(2, 4, dtype=torch.bfloat16)
    with pytest.raises(DtypeError) as caught:
        low_rank_linear(x.float(), W0, bias, [LowRankTerm(A, B, 1.0)])
    assert isinstance(caught.value, LorakitError) and isinstance(caught.value, TypeError)
    assert str(caught.value) == (
        "The input of an adapted layer is torch.float32 but its weight is torch.bfloat16, expected "
        "one dtype. Run the model under torch.autocast, or load the base in one dtype."
    )


def test_a_second_derivative_is_refused_rather_than_wrong():
    x, W0, _, A, B = operands(2, 4)
    x.requires_grad_()
    A.requires_grad_()
    h = low_rank_linear(x, W0, None, [LowRankTerm(A, B, 1.0)]).pow(2).sum()
    (gradient,) = torch.autograd.grad(h, x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_the_reference_is_the_linear_layer_with_the_sum_of_weights():
    x, W0, bias, A, B = operands(6, 4)
    layer = nn.Linear(4, 5, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(W0 + 0.5 * B @ A)
        layer.bias.copy_(bias)
    assert largest_error(low_rank_linear_reference(x, W0, bias, A, B, 0.5), layer(x)) <= 1e-12

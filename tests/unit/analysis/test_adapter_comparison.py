"""Two adapters side by side."""

import pytest
import torch

from lorakit.analysis import analyze_adapter, compare_adapters, similarity
from lorakit.errors import AdapterMismatchError
from tiny_models.adapters import adapter_of, factors_with, layered_adapter, random_factors


def analysed(adapter, name="one"):
    return analyze_adapter(adapter, name=name)


def test_both_sides_are_those_of_the_dense_decompositions():
    first, second = layered_adapter(layers=1, r=3), layered_adapter(layers=1, r=5, seed=1)
    comparison = compare_adapters(analysed(first), analysed(second))
    assert [module.path for module in comparison.modules] == list(first.factors)
    for module in comparison.modules:
        U1, _, V1 = torch.linalg.svd(first.delta_weight(module.path).double())
        U2, _, V2 = torch.linalg.svd(second.delta_weight(module.path).double())
        assert module.inputs.shape == module.outputs.shape == (3, 5)
        close = {"rtol": 1e-4, "atol": 1e-6}  # delta_weight is in float32
        torch.testing.assert_close(module.inputs, similarity(V1[:3].T, V2[:5].T), **close)
        torch.testing.assert_close(module.outputs, similarity(U1[:, :3], U2[:, :5]), **close)
        A1, A2 = (adapter.factors[module.path][0].double() for adapter in (first, second))
        V1, V2 = (torch.linalg.svd(A)[2] for A in (A1, A2))
        torch.testing.assert_close(module.factor_A, similarity(V1[:3].T, V2[:5].T))
    assert comparison.left_out == ()


def test_an_adapter_is_all_of_itself_whatever_its_scale_and_mix():
    (A, B), _, _ = factors_with([3.0, 2.0, 1.0], 15, 12)
    mix = torch.randn(3, 3, dtype=torch.float64)
    first = adapter_of({"m": (A, B)})
    second = adapter_of({"m": (mix @ A, -7 * B @ torch.linalg.inv(mix))})
    (module,) = compare_adapters(analysed(first), analysed(second)).modules
    for phi in (module.inputs, module.outputs):
        torch.testing.assert_close(phi, torch.maximum(phi, torch.ones(3, 3).double()))
    assert module.factor_A[-1, -1] == pytest.approx(1)
    assert module.factor_A[0, 0] < 0.999  # the order of A alone depends on the mix


def test_adapters_that_read_other_features_have_nothing_in_common():
    (_, B), _, right = factors_with([1.0] * 4, 10, 8)
    one = adapter_of({"m": (right[:2], B[:, :2])})
    other = adapter_of({"m": (right[2:], B[:, :2])})
    (module,) = compare_adapters(analysed(one), analysed(other)).modules
    assert module.inputs.max() < 1e-12
    torch.testing.assert_close(module.outputs[-1, -1].item(), 1.0)


def test_a_rank_inside_a_larger_one_is_contained():
    (A, B), left, right = factors_with([5.0, 4.0, 3.0, 2.0], 30, 20)
    small = adapter_of({"m": (right[:2], left[:, :2] * torch.tensor([2.0, 1.0]).double())})
    (module,) = compare_adapters(analysed(small), analysed(adapter_of({"m": (A, B)}))).modules
    assert module.inputs.shape == (2, 4)
    assert module.inputs[0, -1] == pytest.approx(1) and module.inputs[-1, -1] == pytest.approx(1)
    assert module.expected_inputs[0, -1] == pytest.approx(4 / 30)
    assert module.expected_outputs[0, -1] == pytest.approx(4 / 20)


def test_controls_are_random_directions_of_the_same_numbers():
    first, second = layered_adapter(r=4), layered_adapter(r=2, seed=1)
    one, again, other = (
        compare_adapters(analysed(first), analysed(second), seed=seed).modules[0]
        for seed in (1, 1, 2)
    )
    assert one.random_inputs.shape == one.random_outputs.shape == (4, 2)
    assert torch.equal(one.random_inputs, again.random_inputs)
    assert not torch.equal(one.random_inputs, other.random_inputs)
    assert torch.equal(one.inputs, other.inputs)


def test_modules_of_one_alone_and_zero_updates_are_left_out():
    A, B = random_factors(2, 8, 8)
    first = adapter_of({"a": (A, B), "b": (A, B), "c": (A, B)})
    second = adapter_of({"b": (A, B), "c": (A, 0 * B), "d": (A, B)})
    comparison = compare_adapters(analysed(first), analysed(second))
    assert [module.path for module in comparison.modules] == ["b"]
    assert comparison.left_out == ("a", "c", "d")


def test_adapters_with_no_module_in_common_are_refused_by_name():
    A, B = random_factors(2, 8, 8)
    first = adapter_of({f"layers.{n}.q": (A, B) for n in range(5)})
    second = adapter_of({"layers.0.v": (A, B)})
    with pytest.raises(AdapterMismatchError) as caught:
        compare_adapters(analysed(first, "one"), analysed(second, "two"))
    assert str(caught.value) == (
        "Cannot compare one with two: they have no module in common, expected updates of the same "
        "ones. one adapts layers.0.q, layers.1.q, layers.2.q and 2 more; two adapts layers.0.v."
    )


def test_adapters_of_bases_of_other_widths_are_refused():
    first, second = layered_adapter(width=24), layered_adapter(width=32)
    with pytest.raises(AdapterMismatchError) as caught:
        compare_adapters(analysed(first, "one"), analysed(second, "two"))
    assert (
        "ΔW of model.layers.0.attn.q_proj is (24, 24) in one and (32, 32) in two and 3 more, "
        "expected the same shape."
    ) in str(caught.value)


def test_where_one_never_learnt_there_is_nothing_to_compare():
    A, B = random_factors(2, 8, 8)
    first = adapter_of({"a": (A, B), "b": (A, 0 * B)})
    second = adapter_of({"a": (A, 0 * B), "b": (A, B)})
    with pytest.raises(AdapterMismatchError, match="such as a, one of the updates is zero"):
        compare_adapters(analysed(first), analysed(second))

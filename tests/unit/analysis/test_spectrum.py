"""Singular values of updates, against dense decompositions and closed forms."""

import math

import pytest
import torch

from lorakit import LoraConfig, add_adapter
from lorakit.adapters import Adapter
from lorakit.analysis.spectrum import (
    effective_rank,
    energy_kept,
    pooled_energy,
    product_svd,
    rank_for,
    require_share,
    update_svds,
)
from lorakit.errors import AdapterFileError, ConfigError
from tiny_models import gpt2, llama, randomize_
from tiny_models.adapters import adapter_of, factors_with, random_factors


@pytest.mark.parametrize(
    ("r", "in_features", "out_features"),
    [(1, 1, 1), (1, 7, 5), (4, 30, 20), (4, 20, 30), (8, 5, 12), (8, 12, 5), (6, 3, 4)],
)
@pytest.mark.parametrize("scaling", [1.0, 0.25, 7.5])
def test_the_decomposition_is_that_of_the_multiplied_update(r, in_features, out_features, scaling):
    A, B = random_factors(r, in_features, out_features)
    dense = scaling * B.double() @ A.double()
    left, values, right = product_svd(A, B, scaling)
    k = min(r, in_features, out_features)
    assert (left.shape, values.shape, right.shape) == ((out_features, k), (k,), (k, in_features))
    assert {left.dtype, values.dtype, right.dtype} == {torch.float64}
    torch.testing.assert_close(values, torch.linalg.svdvals(dense)[:k])
    torch.testing.assert_close(left * values @ right, dense)
    eye = torch.eye(k, dtype=torch.float64)
    torch.testing.assert_close(left.T @ left, eye)
    torch.testing.assert_close(right @ right.T, eye)


def test_nothing_as_large_as_the_weight_is_made():
    size = 300_000  # a dense product would take 720 GB
    A, B = random_factors(2, size, size)
    _, values, _ = product_svd(A, B)
    expected = ((B.double().T @ B.double()) * (A.double() @ A.double().T)).sum().sqrt()
    torch.testing.assert_close(values.norm(), expected)


def test_bfloat16_factors_are_decomposed_as_the_numbers_they_hold():
    A, B = (factor.bfloat16() for factor in random_factors(3, 16, 12))
    expected = torch.linalg.svdvals(B.double() @ A.double())[:3]
    torch.testing.assert_close(product_svd(A, B)[1], expected)


@pytest.mark.parametrize("rslora", [False, True])
def test_each_module_has_its_own_rank_and_scaling(rslora):
    model = llama()
    add_adapter(
        model,
        LoraConfig(
            r=4,
            lora_alpha=6,
            rank_pattern={"v_proj": 2},
            alpha_pattern={"k_proj": 3},
            use_rslora=rslora,
            target_modules=["q_proj", "k_proj", "v_proj"],
        ),
    )
    adapter = Adapter.from_model(randomize_(model))
    updates = update_svds(adapter)
    assert [update.path for update in updates] == list(adapter.factors)
    for update in updates:
        dense = adapter.delta_weight(update.path)
        assert update.r == update.rank == (2 if "v_proj" in update.path else 4)
        assert (update.out_features, update.in_features) == tuple(dense.shape)
        rebuilt = update.left * update.singular_values @ update.right
        torch.testing.assert_close(rebuilt.float(), dense)
        assert update.norm == pytest.approx(dense.norm().item(), rel=1e-5)
        assert not update.is_embedding


def test_an_embedding_is_decomposed_as_dim_by_vocabulary():
    model = gpt2()
    add_adapter(model, LoraConfig(r=3, lora_alpha=5, target_modules=["wte", "c_attn"]))
    adapter = Adapter.from_model(randomize_(model))
    by_path = {update.path: update for update in update_svds(adapter)}
    update = by_path["transformer.wte"]
    assert update.is_embedding and not by_path["transformer.h.0.attn.c_attn"].is_embedding
    assert (update.out_features, update.in_features) == (16, 32)
    dense = adapter.delta_weight("transformer.wte")
    torch.testing.assert_close((update.left * update.singular_values @ update.right).float(), dense)


def test_the_rank_is_found_where_factors_have_more_columns_than_they_need():
    (A, B), _, _ = factors_with([5.0, 2.0, 1.0], 20, 14)
    # Six columns of rank 3; a mix makes the other three singular values rounding, not exact zeros.
    A, B = torch.cat([A, 0 * A]), torch.cat([B, B], dim=1)
    mix = torch.randn(6, 6, dtype=torch.float64)
    A, B = torch.linalg.inv(mix) @ A, B @ mix
    update = update_svds(adapter_of({"m": (A.float(), B.float())}))[0]
    assert (update.r, update.rank) == (6, 3)
    torch.testing.assert_close(
        update.singular_values[:3], torch.tensor([5.0, 2.0, 1.0]).double(), rtol=1e-4, atol=0
    )


def test_an_update_of_zeros_has_no_rank_and_no_nan():
    A, _ = random_factors(4, 10, 8)
    update = update_svds(adapter_of({"m": (A, torch.zeros(8, 4))}))[0]
    assert update.is_zero
    numbers = (update.rank, update.norm, update.effective_rank, update.stable_rank)
    assert numbers == (0, 0.0, 0.0, 0.0)
    assert update.energy_kept().tolist() == [1.0] * 5
    assert update.rank_for(0.99) == 0


def test_factors_that_are_no_numbers_are_named():
    good, bad = random_factors(2, 6, 6), random_factors(2, 6, 6)
    bad[1][0, 0] = float("inf")
    with pytest.raises(AdapterFileError, match=r"updates of layers\.1: got NaN or infinite"):
        update_svds(adapter_of({"layers.0": good, "layers.1": bad}))


# ---- effective and stable rank ----


def test_equal_values_are_all_in_use_and_one_value_is_one():
    assert effective_rank(torch.full((7,), 0.3)) == pytest.approx(7)
    assert effective_rank(torch.tensor([4.0, 0.0, 0.0])) == pytest.approx(1)


def test_the_effective_rank_is_exp_of_the_entropy_of_the_values_themselves():
    values = [3.0, 1.0]
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert effective_rank(torch.tensor(values)) == pytest.approx(math.exp(entropy), rel=1e-7)


def test_the_effective_rank_does_not_depend_on_the_scale():
    values = torch.tensor([3.0, 1.0, 0.5])
    assert effective_rank(values) == pytest.approx(effective_rank(1e-9 * values))


def test_the_stable_rank_is_the_ratio_of_norms():
    (A, B), _, _ = factors_with([2.0, 1.0, 1.0], 9, 8)
    update = update_svds(adapter_of({"m": (A, B)}))[0]
    assert update.stable_rank == pytest.approx(6 / 4)
    assert update.spectral_norm == pytest.approx(2)


# ---- energy ----


def test_energy_kept_is_that_of_the_best_approximation():
    A, B = random_factors(5, 18, 15)
    dense = (B @ A).double()
    U, S, Vh = torch.linalg.svd(dense, full_matrices=False)
    _, values, _ = product_svd(A, B)
    kept = energy_kept(values)
    assert len(kept) == 6
    for k in range(6):
        residual = dense - (U[:, :k] * S[:k]) @ Vh[:k]
        expected = 1 - residual.norm() ** 2 / dense.norm() ** 2
        assert kept[k].item() == pytest.approx(expected.item(), abs=1e-6)


def test_energy_kept_rises_from_0_to_1():
    kept = energy_kept(product_svd(*random_factors(8, 30, 30))[1])
    assert (kept[0], kept[-1]) == (0, 1)
    assert (kept.diff() > 0).all() and (kept.diff().diff() <= 1e-12).all()


@pytest.mark.parametrize(
    ("share", "rank"), [(0.5, 1), (0.8, 1), (0.801, 2), (0.95, 2), (0.951, 3), (1.0, 3)]
)
def test_the_smallest_rank_that_keeps_a_share(share, rank):
    values = torch.tensor([4.0, math.sqrt(3), 1.0], dtype=torch.float64)  # energies 16, 3, 1
    assert rank_for([values], share) == rank


def test_modules_are_pooled_by_their_energy():
    strong, weak = torch.tensor([10.0]), torch.tensor([1.0, 1.0, 1.0])
    kept = pooled_energy([strong, weak])
    assert kept.tolist() == pytest.approx([0, 101 / 103, 102 / 103, 1])
    assert rank_for([strong, weak], 0.9) == 1
    assert rank_for([weak], 0.9) == 3


def test_a_module_of_zeros_asks_for_no_rank():
    assert rank_for([torch.zeros(4)], 0.9) == 0
    assert rank_for([torch.zeros(4), torch.tensor([1.0, 0.0])], 1.0) == 1


@pytest.mark.parametrize("share", [0.0, -0.1, 1.0001, 90, float("nan")])
def test_a_share_must_be_one(share):
    with pytest.raises(ConfigError, match=r"in energy: got .*, expected a number above 0 and at"):
        require_share(share)

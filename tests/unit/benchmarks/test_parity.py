import pytest
import torch
from benchmarks.models import make_batch, shape_named
from benchmarks.parity import ParityError, check_outputs, check_parity
from benchmarks.variants import FULL, LIMIT, LORAKIT, LORALIB, PEFT, build_variants

SHAPE = shape_named("tiny-llama")


@pytest.fixture
def variants():
    return build_variants(SHAPE, torch.float32, names=(LIMIT, FULL, LORAKIT, PEFT, LORALIB))


@pytest.fixture
def batch():
    return make_batch(SHAPE)


def test_variants_that_compute_the_same_pass(variants, batch):
    assert list(variants) == [LIMIT, FULL, LORAKIT, PEFT, LORALIB]
    check_parity(variants, batch, torch.float32)
    for variant in variants.values():
        assert variant.module.training
        assert all(parameter.grad is None for parameter in variant.module.parameters())


@pytest.mark.parametrize("name", [PEFT, LORALIB])
def test_a_variant_with_another_loss_is_refused_by_name(variants, batch, name):
    with torch.no_grad():
        for (_, letter), factor in variants[name].factors.items():
            factor.mul_(1.5 if letter == "B" else 1.0)
    with pytest.raises(ParityError, match=rf"^{name} has a loss of"):
        check_parity(variants, batch, torch.float32)


def test_a_variant_with_another_gradient_is_refused_with_the_place(variants, batch):
    place, factor = list(variants[PEFT].factors.items())[-1]
    factor.register_hook(lambda gradient: gradient * 1.01)
    with pytest.raises(ParityError, match="peft has another gradient for lora_") as refused:
        check_parity(variants, batch, torch.float32)
    assert f"lora_{place[1]} of {place[0]}" in str(refused.value)


class TestReLUs:
    """float32 gradients of a model with ReLUs may differ by rounding; float64 tells."""

    shape = shape_named("tiny-t5")

    @pytest.fixture
    def variants(self):
        return build_variants(self.shape, torch.float32, names=(LORAKIT, PEFT))

    @staticmethod
    def spoil(variant, share):
        """Make one gradient wrong in float32 alone: a copy in float64 has no such hook."""
        factor = list(variant.factors.values())[-1]
        factor.register_hook(lambda gradient: gradient * (1 + share))

    def test_a_peer_that_differs_by_rounding_passes(self, variants):
        self.spoil(variants[PEFT], 5e-3)
        check_parity(variants, make_batch(self.shape), torch.float32)

    @pytest.mark.parametrize(("name", "share"), [(PEFT, 2e-2), (LORAKIT, 5e-3)])
    def test_but_not_by_more_and_lorakit_not_by_that(self, variants, name, share):
        self.spoil(variants[name], share)
        with pytest.raises(ParityError, match=f"^{name} has another gradient"):
            check_parity(variants, make_batch(self.shape), torch.float32)

    def test_a_mistake_shows_in_float64(self, variants):
        self.spoil(variants[PEFT], 5e-3)
        # Too small a change for the losses in float32 to tell.
        with torch.no_grad():
            list(variants[PEFT].factors.values())[-1].mul_(1 + 3e-4)
        with pytest.raises(ParityError, match=r"^peft in float64 has another gradient"):
            check_parity(variants, make_batch(self.shape), torch.float32)


def test_a_variant_that_trains_fewer_factors_is_refused(variants, batch):
    del variants[LORALIB].factors["model.layers.0.mlp.up_proj", "A"]
    with pytest.raises(ParityError, match=r"loralib trains other factors .*mlp\.up_proj"):
        check_parity(variants, batch, torch.float32)


def test_a_factor_that_gets_no_gradient_is_refused(variants, batch):
    variants[PEFT].factors["model.layers.0.mlp.up_proj", "A"].requires_grad_(False)
    with pytest.raises(ParityError, match=r"peft has no gradient for lora_A of .*mlp\.up_proj"):
        check_parity(variants, batch, torch.float32)


def test_full_training_of_other_weights_is_refused(variants, batch):
    with torch.no_grad():
        variants[FULL].module.lm_head.weight.mul_(1.5)
    with pytest.raises(ParityError, match=r"^full has a loss of"):
        check_parity(variants, batch, torch.float32)


@pytest.mark.parametrize("wrong", [1.001, float("nan")])
def test_outputs_that_differ_are_refused(wrong):
    outputs = {"a": torch.ones(3), "b": torch.tensor([1.0, 1.0, wrong])}
    check_outputs({"a": outputs["a"]}, "a", torch.float32)
    with pytest.raises(ParityError, match="b computes other logits than expected"):
        check_outputs(outputs, "a", torch.float32)

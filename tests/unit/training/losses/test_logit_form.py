"""What configurations say about logits: scales, caps and offsets."""

from types import SimpleNamespace

import pytest
import torch

from lorakit.training.losses.logit_form import LogitForm, candidate_forms, read_logit_form


def model_of(offset=None, **settings):
    config = SimpleNamespace(**settings)
    config.get_text_config = lambda: config
    return SimpleNamespace(config=config, final_logits_bias=offset)


def test_logits_are_scaled_capped_and_offset_in_this_order():
    logits = torch.tensor([[-8.0, 0.5, 100.0]])
    offset = torch.tensor([1.0, 2.0, 3.0])
    expected = 4 * torch.tanh(0.5 * logits / 4) + offset
    torch.testing.assert_close(LogitForm(0.5, 4.0, offset)(logits), expected)
    assert LogitForm()(logits) is logits


@pytest.mark.parametrize(
    ("settings", "forms"),
    [
        ({}, [(1.0, None)]),
        ({"logit_scale": 0.25}, [(1.0, None), (0.25, None)]),
        ({"logits_scaling": 8}, [(1.0, None), (8.0, None), (0.125, None)]),  # factor or divisor
        (
            {"final_logit_softcapping": 30, "logit_scale": 2},
            [(1.0, None), (2.0, None), (1.0, 30.0), (2.0, 30.0)],
        ),
        ({"final_logit_softcapping": None, "logit_scale": "x"}, [(1.0, None)]),
    ],
)
def test_every_combination_of_the_settings_is_tried_the_identity_first(settings, forms):
    found = list(candidate_forms(model_of(**settings), vocabulary=3))
    assert [(form.scale, form.cap) for form in found] == forms
    assert all(form.offset is None for form in found)


def test_only_an_offset_of_the_vocabulary_that_is_not_zero_counts():
    offset = torch.tensor([[0.0, 1.0, 0.0]])
    (form,) = candidate_forms(model_of(offset), vocabulary=3)
    assert form.offset.tolist() == [0.0, 1.0, 0.0]
    for other in (torch.zeros(1, 3), torch.ones(1, 4)):
        assert next(candidate_forms(model_of(other), vocabulary=3)).offset is None


def test_the_named_form_applies_all_settings():
    assert read_logit_form(model_of()) == LogitForm()
    settings = {"logit_scale": 0.5, "final_logit_softcapping": 30.0}
    assert read_logit_form(model_of(**settings)) == LogitForm(0.5, 30.0)
    # A setting named as a divisor divides.
    assert read_logit_form(model_of(logits_scaling=8.0)) == LogitForm(0.125)

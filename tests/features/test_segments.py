"""adapter_rows with segments: one adapter for each sequence of a packed one."""

import pytest
import torch

from fixtures.mixed_batches import batch, with_three
from lorakit import adapter_rows, set_adapter
from lorakit.errors import AdapterNameError, ShapeError
from tiny_models import llama
from tolerances import LOGITS_TOLERANCE, largest_error


def packed(model, sequences):
    """Return the logits of sequences packed into one, each of which sees only itself."""
    lengths = [len(sequence) for sequence in sequences]
    of = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    sees = (of[:, None] == of).tril()
    positions = torch.cat([torch.arange(n) for n in lengths])
    mask = torch.zeros(sees.shape).masked_fill(~sees, torch.finfo(torch.float32).min)
    output = model(
        input_ids=torch.cat(sequences)[None],
        attention_mask=mask[None, None],
        position_ids=positions[None],
        use_cache=False,
    )
    return output.logits[0].split(lengths)


SEQUENCES = [torch.arange(3, 3 + n) for n in (4, 1, 6, 2)]


def assert_each_segment_is_its_own(model, names):
    segments = [(len(s), name) for s, name in zip(SEQUENCES, names, strict=True)]
    with torch.no_grad(), adapter_rows(model, segments=segments):
        together = packed(model, SEQUENCES)
    for sequence, name, got in zip(SEQUENCES, names, together, strict=True):
        set_adapter(model, name)
        with torch.no_grad():
            alone = model(sequence[None]).logits[0]
        assert largest_error(got, alone) < LOGITS_TOLERANCE, name


@pytest.mark.parametrize("use_dora", [False, True])
@pytest.mark.parametrize("targets", ["all-linear", ["embed_tokens", "q_proj", "down_proj"]])
def test_each_segment_of_a_packed_sequence_has_its_adapter(targets, use_dora):
    model = with_three(llama, target_modules=targets, use_dora=use_dora)
    assert_each_segment_is_its_own(model, ["b", None, "a", "b"])


def test_trained_heads_of_segments():
    model = with_three(llama, target_modules=["q_proj"], modules_to_save=["lm_head"])
    assert_each_segment_is_its_own(model, ["c", "a", None, "c"])


def test_segments_train_their_adapters():
    model = with_three(llama, target_modules=["q_proj", "down_proj"])
    segments = [(len(s), name) for s, name in zip(SEQUENCES, "abba", strict=True)]
    with adapter_rows(model, segments=segments):
        sum(logits.square().sum() for logits in packed(model, SEQUENCES)).backward()
    mixed = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    for sequence, (_, name) in zip(SEQUENCES, segments, strict=True):
        set_adapter(model, name)
        model(sequence[None]).logits.square().sum().backward()
    for name, parameter in model.named_parameters():
        if ".a." in name or ".b." in name:
            assert largest_error(mixed[name], parameter.grad) < 1e-4, name


def test_segments_that_make_no_sense():
    model = with_three(llama)
    with pytest.raises(ShapeError, match="at least one token"), adapter_rows(model, segments=[]):
        pass
    with pytest.raises(ShapeError, match="Leave empty"), adapter_rows(model, segments=[(0, "a")]):
        pass
    with (
        pytest.raises(AdapterNameError, match="expected one of them"),
        adapter_rows(model, ["a"], segments=[(2, "a")]),
    ):
        pass
    with (
        adapter_rows(model, segments=[(2, "a"), (3, "b")]),
        pytest.raises(ShapeError, match="segments of 5 tokens"),
    ):
        model(**batch(model, 2))

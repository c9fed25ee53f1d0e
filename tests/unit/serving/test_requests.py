"""What HTTP and the engine exchange."""

from dataclasses import FrozenInstanceError

import pytest

from lorakit.serving.requests import (
    Failed,
    Finished,
    GenerationRequest,
    NewText,
    Sampling,
    TokenLogprob,
)


def test_they_are_values_that_cannot_change():
    sampling = Sampling(max_tokens=3)
    values = (
        sampling,
        GenerationRequest((1, 2), None, "", sampling),
        TokenLogprob(1, -0.5),
        NewText((1,), "a"),
        Finished("stop", 2, 0, 1),
        Failed(ValueError()),
    )
    for value in values:
        with pytest.raises(FrozenInstanceError):
            value.other = 1


def test_defaults_sample_from_the_model_as_it_is():
    sampling = Sampling(max_tokens=3)
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (1, 1, 0, 0)
    assert not sampling.logit_bias and not sampling.stop and sampling.logprobs is None

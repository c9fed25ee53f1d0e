import json

import pytest

from lorakit.serving.http.protocol.body import parse_body
from lorakit.serving.http.protocol.sampling_fields import SamplingFields
from lorakit.serving.refusals import RequestError


def parsed(**fields):
    return parse_body(SamplingFields, json.dumps({"model": "m"} | fields).encode())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", 2.1),
        ("top_p", 0),
        ("top_p", 1.1),
        ("top_k", -2),
        ("min_p", 1.5),
        ("n", 0),
        ("frequency_penalty", 3),
        ("presence_penalty", -3),
        ("seed", 2**64),
        ("seed", 1.5),
        ("logit_bias", {"a": 1}),
        ("logit_bias", {"-1": 1}),
        ("logit_bias", {"9" * 5000: 1}),
        ("logit_bias", {"1": 101}),
        ("stop", ""),
        ("stop", ["a", ""]),
        ("stop", 3),
        ("stream_options", {"colour": 1}),
        ("model", ""),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(field, value):
    with pytest.raises(RequestError) as caught:
        parsed(**{field: value})
    assert caught.value.param.startswith(field)


def test_stops_are_a_list_and_usage_is_wanted_or_not():
    assert parsed().stops == []
    assert parsed(stop="a").stops == ["a"]
    assert parsed(stop=["a", "b"]).stops == ["a", "b"]
    assert not parsed().includes_usage
    assert parsed(stream=True, stream_options={"include_usage": True}).includes_usage

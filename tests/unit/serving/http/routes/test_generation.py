from lorakit.serving.http.routes.generation import Usage


def test_usage_has_openais_names():
    assert Usage(prompt=5, cached=4, completion=2).as_json() == {
        "prompt_tokens": 5,
        "completion_tokens": 2,
        "total_tokens": 7,
        "prompt_tokens_details": {"cached_tokens": 4},
    }


def test_a_prompt_that_was_read_before_is_counted_as_cached(served):
    body = {"model": "german", "prompt": list(range(10, 80)), "max_tokens": 1}
    served.post("/v1/completions", body)
    usage = served.post("/v1/completions", body)["usage"]
    assert usage["prompt_tokens"] == 70
    assert usage["prompt_tokens_details"]["cached_tokens"] in (48, 64)
    other = served.post("/v1/completions", body | {"model": "french"})["usage"]
    assert other["prompt_tokens_details"]["cached_tokens"] == 0

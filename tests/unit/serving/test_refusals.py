from lorakit.serving.refusals import overload_error, stopping, unknown_model


def test_an_unknown_model_is_told_with_the_nearest_names():
    error = unknown_model("sentiment-v1", ["sentiment-v2", "sentiment-v3", "base"])
    assert str(error).endswith("The nearest are sentiment-v2, sentiment-v3.") or str(
        error
    ).endswith("The nearest are sentiment-v3, sentiment-v2.")
    assert (error.status, error.param, error.code) == (404, "model", "model_not_found")


def test_what_can_succeed_later_says_when():
    assert (overload_error("Full.").status, overload_error("Full.").retry_after_s) == (429, 1)
    assert (stopping().status, stopping().retry_after_s) == (503, 5)

"""Requirements of `lorakit evaluate --require`."""

import math

import pytest

from lorakit.cli.metric_requirements import check_requirements, parse_requirements
from lorakit.errors import ConfigError, RequirementError

METRICS = {"eval_accuracy": 0.875, "loss": 0.5, "perplexity": math.nan}


@pytest.mark.parametrize(
    "text, is_met",
    [
        ("accuracy>=0.875", True),
        ("accuracy > 0.875", False),
        ("accuracy>=.9", False),
        ("loss<=0.5", True),
        ("loss<0.5", False),
        ("perplexity<1e9", False),
    ],
)
def test_each_comparison(text, is_met):
    requirements = parse_requirements([text])
    if is_met:
        assert len(check_requirements(requirements, METRICS)) == 1
        return
    with pytest.raises(RequirementError, match="expected " + text.split()[0].split(">")[0][:4]):
        check_requirements(requirements, METRICS)


@pytest.mark.parametrize("written", ["f1_late_fee", "f1 late fee", "eval_f1_late_fee", "macro f1"])
def test_a_metric_is_found_by_its_key_and_by_the_words_of_the_table(written):
    metrics = {"eval_f1_late_fee": 0.5, "eval_f1": 0.5}
    key = "f1" if written == "macro f1" else "f1_late_fee"
    met = check_requirements(parse_requirements([f"{written} >= 0.25"]), metrics)
    assert met == [f"As required: {key}>=0.25, got 0.5."]


def test_all_that_is_missed_is_named():
    with pytest.raises(RequirementError) as caught:
        check_requirements(parse_requirements(["accuracy>=0.9", "loss<0.4"]), METRICS)
    assert str(caught.value) == (
        "The adapter is not as good as required: got accuracy 0.875, expected accuracy>=0.9; "
        "loss 0.5, expected loss<0.4. Train it further, or lower the requirement."
    )


@pytest.mark.parametrize("text", ["accuracy", "accuracy=0.9", "accuracy>=high", ">=0.9", ""])
def test_what_is_no_requirement(text):
    with pytest.raises(ConfigError, match="expected a metric, one of >= <= > < and a number"):
        parse_requirements([text])


def test_an_unknown_metric_is_named_with_the_nearest():
    with pytest.raises(ConfigError, match="Did you mean 'accuracy'"):
        check_requirements(parse_requirements(["acuracy>=0.9"]), METRICS)

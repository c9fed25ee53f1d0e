"""What runs must have in common: each key, with both values."""

import pytest

from lorakit.errors import ConfigError
from lorakit.training.together.agreement import differences, find_fixed_keys, require_agreement

ADVICE = "Train them one after another: leave --together out."


def refusal(*recipes):
    with pytest.raises(ConfigError) as caught:
        require_agreement(recipes)
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"dtype": "bfloat16"},
            'dtype is "float32" in the run of {a} and "bfloat16" in the run of {b}',
        ),
        ({"revision": "other"}, 'revision is null in the run of {a} and "other" in'),
        ({"training": {"bf16": True}}, "training.bf16 is null in the run of {a} and true in"),
        (
            {"data": {"new_tokens": ["<a>"]}},
            'data.new_tokens is [] in the run of {a} and ["<a>"] in',
        ),
        ({"float32_small_parameters": True}, "float32_small_parameters is false in the run of {a}"),
        ({"quantization": {"bits": 4}}, "quantization is null in the run of {a} and {{"),
    ],
    ids=str,
)
def test_a_key_that_differs_is_named_with_both_values(recipe, changes, said):
    first = recipe("a", dtype="float32")
    values = {"dtype": "float32", **changes}
    if "data" in values:
        values["data"] = {**first.data.model_dump(mode="json", exclude_none=True), **values["data"]}
        values["data"].pop("mixture", None)
    text = refusal(first, recipe("b", **values))
    assert text.startswith("Cannot train these runs together: ") and text.endswith(ADVICE)
    assert said.format(a=first.output, b=first.output[:-1] + "b") in text


@pytest.mark.parametrize("key", ["torch_compile", "neftune_noise_alpha", "bf16_full_eval"])
def test_what_one_run_alone_can_have_is_refused(recipe, key):
    value = 5.0 if key == "neftune_noise_alpha" else True
    both = [recipe(name, training={key: value}) for name in ("a", "b")]
    assert f"the run of {both[0].output} has training.{key}: " in refusal(*both)


def test_the_same_output_twice_is_refused(recipe):
    text = refusal(recipe("a"), recipe("b"), recipe("a"))
    assert f"got output {recipe('a').output} twice, expected a directory for each run" in text


def test_the_same_output_by_another_path_is_refused(recipe, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
    text = refusal(recipe("a"), recipe("link/a"))
    assert f"got output {recipe('a').output} twice" in text


def test_runs_on_a_quantized_base_leave_the_same_modules_dense(recipe):
    def made(name, modules, **values):
        return recipe(name, lora={"r": 2, "modules_to_save": modules}, **values)

    quantized = {"quantization": {"bits": 4}}
    text = refusal(made("a", ["lm_head"], **quantized), made("b", [], **quantized))
    assert 'lora.modules_to_save is ["lm_head"] in the run of' in text
    require_agreement([made("a", ["lm_head"]), made("b", [])])
    keys = ("lora.r", "lora.modules_to_save")
    assert find_fixed_keys(made("a", [], **quantized), keys) == ["lora.modules_to_save"]
    assert find_fixed_keys(recipe("a"), keys) == []


def test_batches_rates_and_adapters_may_differ(recipe):
    require_agreement(
        [
            recipe("a"),
            recipe("b", lora={"r": 8}, training={"per_device_train_batch_size": 1, "seed": 3}),
        ]
    )


def test_the_difference_of_two_bases_is_said_by_key():
    assert differences({"labels": ["a"], "model": "m"}, {"labels": ["b"], "model": "m"}) == (
        'labels is ["a"] there and ["b"] here'
    )

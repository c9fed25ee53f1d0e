import copy
import pickle
from enum import StrEnum

import pytest

from lorakit.config import LoraConfig, TaskType, matching_pattern
from lorakit.errors import ConfigError, LorakitError


def message(**values):
    with pytest.raises(ConfigError) as caught:
        LoraConfig(**values)
    return str(caught.value)


def test_defaults_are_peft_s():
    config = LoraConfig()
    assert (config.r, config.lora_alpha, config.lora_dropout, config.bias) == (8, 8, 0.0, "none")
    assert config.target_modules is None and config.modules_to_save == ()


def test_a_config_error_is_a_lorakit_error_and_a_value_error():
    with pytest.raises(ValueError):
        LoraConfig(r=0)
    with pytest.raises(LorakitError):
        LoraConfig(r=0)
    assert ConfigError.exit_code == 2


def test_it_is_frozen_comparable_and_copies():
    config = LoraConfig(r=4, rank_pattern={"q": 2})
    with pytest.raises(ValueError, match="frozen"):
        config.r = 5
    assert config == LoraConfig(r=4, rank_pattern={"q": 2}) != LoraConfig(r=4)
    assert copy.deepcopy(config) == pickle.loads(pickle.dumps(config)) == config


@pytest.mark.parametrize(
    "values,expected",
    [
        ({"r": 0}, "In LoraConfig: r: got 0; input should be greater than or equal to 1."),
        ({"r": True}, "In LoraConfig: r: got True; expected a number."),
        ({"r": 2.5}, "got 2.5"),
        ({"lora_alpha": 0}, "lora_alpha: got 0; input should be greater than 0."),
        ({"lora_alpha": float("inf")}, "lora_alpha: got inf; input should be a finite number."),
        ({"lora_alpha": float("nan")}, "lora_alpha: got nan;"),
        ({"lora_dropout": 1.0}, "lora_dropout: got 1.0; input should be less than 1."),
        ({"lora_dropout": -0.1}, "lora_dropout: got -0.1;"),
        ({"bias": "some"}, "bias: got 'some'; input should be 'none', 'all' or 'lora_only'."),
        ({"target_modules": []}, "target_modules: got []; expected at least one name"),
        ({"target_modules": ""}, "target_modules: got ''; expected at least one name"),
        (
            {"target_modules": 5},
            "In LoraConfig: target_modules: got 5; input should be a valid string or input should "
            "be a list.",
        ),
        ({"rank_pattern": {"q": 0}}, "rank_pattern.q: got 0;"),
        ({"alpha_pattern": {"q": -1}}, "alpha_pattern.q: got -1;"),
        (
            {"init_lora_weights": "corda"},
            "init_lora_weights: got 'corda'; expected true, false, gaussian, orthogonal, pissa, "
            "olora, loftq, eva, lora_ga, or pissa_niter_ and a number.",
        ),
        ({"init_lora_weights": "pissa_niter_"}, "init_lora_weights: got 'pissa_niter_'; expected"),
        ({"eva_rho": 3}, "eva_rho is a setting of init_lora_weights eva, got init_lora_weights=T"),
        ({"init_lora_weights": "eva", "eva_rho": 0.5}, "eva_rho: got 0.5;"),
        ({"init_lora_weights": "pissa", "init_batches": 2}, "init_batches is a setting of init"),
        ({"init_lora_weights": "lora_ga", "init_batches": 0}, "init_batches: got 0;"),
        ({"layers_to_transform": ["a"]}, "layers_to_transform.0: got 'a';"),
        ({"layers_to_transform": True}, "layers_to_transform: got True;"),
        ({"modules_to_save": "head"}, "modules_to_save: got 'head';"),
        ({"task_type": "SEQ_CL"}, "task_type: got 'SEQ_CL'; input should be 'CAUSAL_LM', "),
    ],
)
def test_a_wrong_value_is_named_with_its_key(values, expected):
    assert expected in message(**values)


@pytest.mark.parametrize(
    "values",
    [
        {"target_modules": "(q"},
        {"exclude_modules": "(q"},
        {"layers_pattern": "(q"},
        {"layers_pattern": ["h", "(q"]},
        {"rank_pattern": {"(q": 2}},
        {"alpha_pattern": {"(q": 2}},
    ],
)
def test_an_invalid_regex_is_named(values):
    text = message(**values)
    assert f"In LoraConfig: {next(iter(values))}: " in text
    assert "'(q' is not a valid regular expression (missing ), unterminated subpattern" in text


def test_a_list_of_names_is_no_regex():
    assert LoraConfig(target_modules=["(q"]).target_modules == ("(q",)


def test_sets_and_single_layers_are_taken_as_peft_takes_them():
    config = LoraConfig(target_modules={"v", "q"}, layers_to_transform=3)
    assert config.target_modules == ("q", "v")
    assert config.layers_to_transform == (3,)


def test_patterns_decide_rank_alpha_and_scaling():
    config = LoraConfig(
        r=8,
        lora_alpha=16,
        rank_pattern={"k_proj": 4, "layers.0.q_proj": 2},
        alpha_pattern={r"layers\.[01]\..*": 8},
    )
    assert config.rank_for("model.layers.0.q_proj") == 2
    assert config.rank_for("model.layers.10.q_proj") == 8
    assert config.rank_for("k_proj") == 4
    assert config.scaling_for("model.layers.5.q_proj") == 2
    assert config.scaling_for("model.layers.0.q_proj") == 8 / 2
    assert config.scaling_for("model.layers.1.k_proj") == 8 / 4


def test_rslora_divides_by_the_root_of_the_rank():
    config = LoraConfig(r=16, lora_alpha=8, use_rslora=True, rank_pattern={"k": 4})
    assert config.scaling_for("q") == 2
    assert config.scaling_for("k") == 4


@pytest.mark.parametrize(
    "pattern,path,fits",
    [
        ("q", "a.q", True),
        ("q", "q", True),
        ("q", "a.xq", False),
        ("q", "q.a", False),
        ("a|b", "x.b", True),
        ("a|b", "x.ab", False),
        (r"\d\.q", "h.3.q", True),
        ("^a.q", "a.q", True),
        ("^a.q", "b.a.q", False),
    ],
)
def test_matching_pattern(pattern, path, fits):
    assert (matching_pattern([pattern], path) == pattern) is fits


def test_the_first_of_two_fitting_patterns_wins():
    assert matching_pattern({"q": 1, "a.q": 2}, "a.q") == "q"


def test_task_types_are_strings_with_peft_s_values():
    assert issubclass(TaskType, StrEnum)
    assert LoraConfig(task_type="SEQ_CLS").task_type is TaskType.SEQ_CLS
    assert f"{TaskType.SEQ_2_SEQ_LM}" == "SEQ_2_SEQ_LM"


@pytest.mark.parametrize(
    "values",
    [
        {"lora_alpha": 1e308},
        {"lora_alpha": 1e40},
        {"lora_alpha": 10**300},
        {"lora_alpha": 1e-44},
        {"lora_alpha": 1e-36, "r": 2**30},
        {"alpha_pattern": {"q": 1e300}},
        {"lora_alpha": 1e-40, "use_rslora": True},
    ],
)
def test_a_scaling_that_float32_does_not_have(values):
    with pytest.raises(ConfigError, match=r"give the scaling .*, expected a float32 number"):
        LoraConfig(**values)


@pytest.mark.parametrize("power", [10, 400, 4400, 5000])
@pytest.mark.parametrize(
    "key", ["r", "layers_to_transform", "trainable_token_indices", "lora_alpha", "init_batches"]
)
def test_numbers_of_any_length_are_refused_in_a_sentence(key, power):
    number = 10**power if key != "lora_alpha" else 10 ** (power + 40)
    value = [number] if key in ("layers_to_transform", "trainable_token_indices") else number
    with pytest.raises(ConfigError) as caught:
        LoraConfig(**{key: value})
    assert len(str(caught.value)) < 1000 and key in str(caught.value)

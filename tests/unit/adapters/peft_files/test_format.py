import pytest
import torch

from lorakit.adapters.peft_files.format import (
    config_from_peft,
    config_to_peft,
    parse_keys,
    tensor_keys,
)
from lorakit.config import LoraConfig, TaskType
from lorakit.errors import AdapterFileError, ConfigError

P = "base_model.model."
A, B = torch.zeros(2, 4), torch.zeros(3, 2)


def factor(path="q"):
    return {f"{P}{path}.lora_A.weight": A, f"{P}{path}.lora_B.weight": B}


def refused(tensors):
    with pytest.raises(AdapterFileError) as caught:
        parse_keys(tensors, "here")
    return str(caught.value)


class TestKeys:
    def test_the_keys_of_the_facts(self):
        keys = tensor_keys(
            {"m.q": (A, B), "m.embed": (A, B)},
            {"m.q.bias": B, "m.norm.bias": B, "head.weight": A},
            frozenset({"m.embed"}),
            {"m.embed": A},
        )
        assert sorted(keys) == [
            P + "head.weight",
            P + "m.embed.base_layer.weight",
            P + "m.embed.lora_embedding_A",
            P + "m.embed.lora_embedding_B",
            P + "m.norm.bias",
            P + "m.q.base_layer.bias",
            P + "m.q.lora_A.weight",
            P + "m.q.lora_B.weight",
        ]
        parsed = parse_keys(keys, "here", ("head",))
        assert set(parsed.factors) == {"m.q", "m.embed"}
        assert set(parsed.replaced) == {"m.q.bias", "m.norm.bias", "head.weight"}
        assert parsed.embeddings == {"m.embed"}
        assert set(parsed.base_weights) == {"m.embed"}

    def test_junk_that_peft_repeats_for_all_biases_is_left_aside(self):
        junk = {
            f"{P}head.original_module.bias": B,
            f"{P}head.modules_to_save.bias": B,
            f"{P}head.modules_to_save.default.bias": B,
        }
        assert parse_keys(factor() | junk, "here").replaced == {}

    @pytest.mark.parametrize(
        "key,names,trained",
        [
            ("classifier.weight", ("classifier",), True),
            ("pre_classifier.weight", ("classifier",), True),  # as PEFT matches them
            ("classifier.dense.weight", ("classifier",), True),
            ("m.head.weight", ("m.head",), True),
            ("lm_head.weight", ("classifier",), False),
            ("embed.base_layer.weight", (), False),
            ("embed.weight", (), False),
            ("norm.bias", (), True),
            ("q.base_layer.bias", (), True),
        ],
    )
    def test_weights_of_the_base_are_distinguished_from_trained_ones(self, key, names, trained):
        parsed = parse_keys(factor() | {P + key: A}, "here", names)
        assert len(parsed.replaced) == trained and len(parsed.base_weights) == (not trained)

    def test_repeated_weights_are_written_where_they_were_read(self):
        weights = {"q": A, "lm_head": A}
        keys = tensor_keys({"q": (A, B)}, {}, frozenset(), weights)
        assert {P + "q.base_layer.weight", P + "lm_head.weight"} <= set(keys)
        assert parse_keys(keys, "here").base_weights == weights

    def test_a_factor_without_its_partner(self):
        text = refused({f"{P}q.lora_A.weight": A})
        assert "q has lora_A without its partner" in text

    def test_a_wrong_prefix(self):
        text = refused({"model.q.lora_A.weight": A, "model.q.lora_B.weight": B})
        assert text == (
            "The tensors in here are not a PEFT adapter: key 'model.q.lora_A.weight' does not "
            "start with 'base_model.model.' and 1 more. Expected keys such as 'base_model.model."
            "<module path>.lora_A.weight'."
        )

    @pytest.mark.parametrize("ending", ["", ".weight"])
    def test_magnitudes_have_a_key_and_an_older_one(self, ending):
        parsed = parse_keys(
            factor() | {f"{P}q.lora_magnitude_vector{ending}": torch.ones(3)}, "here"
        )
        assert parsed.companions.keys() == {"q.magnitude"} and parsed.replaced == {}
        keys = tensor_keys(parsed.factors, {}, frozenset(), {}, parsed.companions)
        assert f"{P}q.lora_magnitude_vector" in keys

    def test_a_magnitude_without_factors(self):
        text = refused(factor() | {f"{P}k.lora_magnitude_vector": torch.ones(3)})
        assert "k has lora_magnitude_vector without lora_A and lora_B" in text

    @pytest.mark.parametrize("tensors", [{}, {f"{P}head.weight": A}])
    def test_no_factor_at_all(self, tensors):
        assert "there is no lora_A and lora_B in it" in refused(tensors)

    @pytest.mark.parametrize(
        "key,feature",
        [
            ("q.lora_B.bias", "a bias on lora_B (lora_bias)"),
        ],
    )
    def test_features_lorakit_does_not_have_are_named(self, key, feature):
        text = refused(factor() | {P + key: A})
        assert feature in text and f"'{P}{key}'" in text

    @pytest.mark.parametrize("bad", [torch.zeros(8), torch.zeros(2, 4, 1, 1), torch.tensor(1.0)])
    @pytest.mark.parametrize("letter", "AB")
    def test_a_factor_that_is_no_matrix(self, bad, letter):
        text = refused(factor() | {f"{P}q.lora_{letter}.weight": bad})
        assert f"q.lora_{letter} has shape {tuple(bad.shape)}, expected a matrix" in text


def peft(**values):
    return {"peft_type": "LORA", "r": 4, "target_modules": ["q"]} | values


class TestConfig:
    def test_there_and_back(self):
        config = LoraConfig(
            r=4,
            lora_alpha=3,
            lora_dropout=0.1,
            target_modules=["k", "q"],
            rank_pattern={"k": 2},
            alpha_pattern={"k": 1.5},
            bias="lora_only",
            modules_to_save=["head"],
            task_type="SEQ_CLS",
            use_rslora=True,
            init_lora_weights="gaussian",
        )
        values = config_to_peft(config, "base")
        assert values["base_model_name_or_path"] == "base"
        assert values["peft_type"] == "LORA" and values["inference_mode"] is True
        assert values["lora_alpha"] == 3 and isinstance(values["lora_alpha"], int)
        assert list(values) == sorted(values)
        assert config_from_peft(values, "here") == config

    def test_a_broken_alpha_stays_a_float(self):
        assert config_to_peft(LoraConfig(lora_alpha=1.5), None)["lora_alpha"] == 1.5

    def test_fields_of_peft_that_are_off_are_accepted(self):
        off = {
            "use_dora": False,
            "lora_bias": False,
            "loftq_config": {},
            "megatron_config": None,
            "layer_replication": None,
            "trainable_token_indices": None,
            "qalora_group_size": 16,
            "peft_version": "0.21.2",
            "revision": None,
            "arrow_config": None,
            "target_parameters": None,
            "auto_mapping": {"base_model_class": "X"},
            "some_future_switch": False,
        }
        assert config_from_peft(peft(**off), "here") == LoraConfig(r=4, target_modules=["q"])

    @pytest.mark.parametrize(
        "values,named",
        [
            ({"lora_bias": True}, "lora_bias=True"),
            ({"layer_replication": [[0, 4]]}, "layer_replication=[[0, 4]]"),
            (
                {"init_lora_weights": "pissa_niter_4"},
                "init_lora_weights='pissa_niter_4', which changes the base (PEFT's path_initial_",
            ),
            ({"init_lora_weights": "lora_ga"}, "init_lora_weights='lora_ga', which changes the"),
            ({"init_lora_weights": "loftq"}, "init_lora_weights='loftq', which changes the base."),
            ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens=[1]"),
            ({"init_lora_weights": "corda"}, "init_lora_weights='corda'"),
            ({"some_future_switch": True}, "some_future_switch=True"),
        ],
    )
    def test_features_lorakit_does_not_have_are_named(self, values, named):
        with pytest.raises(AdapterFileError) as caught:
            config_from_peft(peft(**values), "here")
        assert str(caught.value).startswith(
            f"here uses features that lorakit does not support: {named}"
        )
        assert str(caught.value).endswith("Convert the adapter with the tool that made it.")

    def test_every_such_feature_is_listed(self):
        with pytest.raises(AdapterFileError, match="use_qalora=True, lora_bias=True"):
            config_from_peft(peft(use_qalora=True, lora_bias=True), "here")

    @pytest.mark.parametrize("kind", ["LOHA", "IA3", "PROMPT_TUNING", None])
    def test_other_methods_are_refused_by_name(self, kind):
        with pytest.raises(AdapterFileError) as caught:
            config_from_peft(peft(peft_type=kind), "here")
        assert str(caught.value) == (
            f"here holds a PEFT adapter of type {kind!r}, expected 'LORA'. lorakit reads LoRA "
            "adapters only."
        )

    @pytest.mark.parametrize(
        "kind,kept", [("eva", True), ("orthogonal", "orthogonal"), ("gaussian", "gaussian")]
    )
    def test_initializations_that_leave_the_base_alone_do_not_matter(self, kind, kept):
        assert config_from_peft(peft(init_lora_weights=kind), "here").init_lora_weights == kept

    def test_the_settings_of_eva_change_no_output(self):
        values = peft(init_lora_weights="eva", eva_config={"rho": 2.0, "tau": 0.99})
        assert config_from_peft(values, "here").init_lora_weights is True
        with pytest.raises(AdapterFileError, match="eva_config="):
            config_from_peft(peft(eva_config={"rho": 2.0}), "here")

    @pytest.mark.parametrize("kind", ["pissa", "olora"])
    def test_starts_that_can_be_computed_again_are_kept(self, kind):
        config = config_from_peft(peft(init_lora_weights=kind), "here")
        assert config.init_lora_weights == kind
        assert config_to_peft(config, None)["init_lora_weights"] == kind

    @pytest.mark.parametrize("kind", ["loftq", "eva", "lora_ga"])
    def test_starts_that_leave_no_trace_are_not_written(self, kind):
        values = config_to_peft(LoraConfig(init_lora_weights=kind), None)
        assert values["init_lora_weights"] is True
        assert not {"eva_rho", "init_batches"} & values.keys()

    def test_how_lora_a_is_trained_is_not_in_the_file(self):
        assert "freeze_lora_a" not in config_to_peft(LoraConfig(freeze_lora_a=True), None)

    @pytest.mark.parametrize("kind", ["FEATURE_EXTRACTION", "QUESTION_ANS", None])
    def test_task_types_lorakit_does_not_train_are_dropped(self, kind):
        assert config_from_peft(peft(task_type=kind), "here").task_type is None

    def test_a_known_task_type_stays(self):
        config = config_from_peft(peft(task_type="TOKEN_CLS"), "here")
        assert config.task_type is TaskType.TOKEN_CLS

    @pytest.mark.parametrize(
        "values,expected",
        [
            ({"r": 0}, "r: got 0"),
            ({"rank_pattern": {"(": 2}}, "is not a valid regular expression"),
            ({"lora_alpha": "x"}, "lora_alpha: got 'x'"),
        ],
    )
    def test_values_out_of_range_name_the_file(self, values, expected):
        with pytest.raises(ConfigError) as caught:
            config_from_peft(peft(**values), "here")
        assert "here" in str(caught.value) and expected in str(caught.value)


class TestKeysOfAModelsState:
    """Keys with the adapter's name in them, as in the state of PEFT's model."""

    def test_the_name_is_left_out(self):
        keys = {
            P + "m.q.lora_A.mine.weight": A,
            P + "m.q.lora_B.mine.weight": B,
            P + "m.q.lora_magnitude_vector.mine.weight": B[:, 0],
            P + "m.q.base_layer.weight": A,
            P + "m.embed.lora_embedding_A.mine": A,
            P + "m.embed.lora_embedding_B.mine": B,
            P + "m.embed.token_adapter.trainable_tokens_delta.mine": A,
            P + "head.original_module.weight": A,
            P + "head.modules_to_save.mine.weight": B,
        }
        parsed = parse_keys(keys, "here", ("head",))
        assert parsed.factors.keys() == {"m.q", "m.embed"}
        assert parsed.embeddings == {"m.embed"}
        assert parsed.companions.keys() == {"m.q.magnitude"}
        assert parsed.trained_tokens.keys() == {"m.embed"}
        assert parsed.base_weights.keys() == {"m.q"}
        assert parsed.replaced.keys() == {"head.weight"}
        assert parsed.replaced["head.weight"] is B

    @pytest.mark.parametrize(
        "other",
        [f"{P}v.lora_A.other.weight", f"{P}v.lora_A.weight", f"{P}v.lora_embedding_A"],
    )
    def test_several_adapters_are_refused(self, other):
        keys = {P + "q.lora_A.mine.weight": A, P + "q.lora_B.mine.weight": B, other: A}
        assert "are those of several adapters: got mine, o" in refused(keys)

    def test_a_head_whose_key_alone_has_a_name_is_not_passed_over(self):
        keys = {P + "q.lora_A.weight": A, P + "q.lora_B.weight": B}
        for name in ("head.modules_to_save.mine.weight", "head.modules_to_save.weight"):
            assert f"{P}{name} contains an adapter's name" in refused(keys | {P + name: B})
        repeated = {P + "head.modules_to_save.bias": A[0], P + "head.original_module.bias": A[0]}
        assert parse_keys(keys | repeated, "here").replaced == {}

    def test_a_bias_is_that_of_the_layer_around_which_peft_wraps_tokens(self):
        keys = {P + "q.lora_A.weight": A, P + "q.lora_B.weight": B}
        parsed = parse_keys(keys | {P + "head.token_adapter.base_layer.bias": A[0]}, "here")
        assert parsed.replaced.keys() == {"head.bias"}

    def test_two_keys_for_one_factor_are_refused(self):
        keys = {P + "q.lora_A.weight": A, P + "q.lora_B.weight": B}
        for other in ("q.lora_A", "q.lora_embedding_A"):
            assert "there are two lora_A of q" in refused(keys | {P + other: A})

    def test_features_are_found_beside_a_name(self):
        keys = {P + "q.lora_A.mine.weight": A, P + "q.lora_B.mine.weight": B}
        assert "lora_bias" in refused(keys | {P + "q.lora_B.mine.bias": B})


def test_dropout_beside_parameters_is_not_written():
    config = LoraConfig(target_parameters=["w"], target_modules=["q"], lora_dropout=0.1)
    assert config_to_peft(config, None)["lora_dropout"] == 0
    config = LoraConfig(target_modules=["q"], lora_dropout=0.1)
    assert config_to_peft(config, None)["lora_dropout"] == 0.1

"""Runs that train together have the losses and the adapters of runs that train alone."""

import pytest

from fixtures.data import write_jsonl
from fixtures.runs import adapter_bytes
from fixtures.together import lora, require_equal_runs
from lorakit.errors import ConfigError
from lorakit.training import train
from lorakit.training.together import train_together


def both_ways(make, changes):
    """Train each recipe alone and all together; return the results of both."""
    alone = [train(make(f"alone-{n}", **each)) for n, each in enumerate(changes)]
    together = train_together([make(f"together-{n}", **each) for n, each in enumerate(changes)])
    for result in together:
        if isinstance(result, BaseException):
            raise result
    return together, alone


def test_two_runs_are_those_of_alone(recipe):
    together, alone = both_ways(
        recipe,
        [
            {"lora": lora(2, "q_proj", "v_proj")},
            {
                "lora": lora(4, "q_proj", "down_proj"),
                "training": {"learning_rate": 1e-3, "seed": 7},
            },
        ],
    )
    for ours, theirs in zip(together, alone, strict=True):
        require_equal_runs(ours, theirs)


def test_eight_features_in_one_group(recipe):
    together, alone = both_ways(
        recipe,
        [
            {"lora": lora(2, "q_proj", "v_proj", lora_dropout=0.1), "training": {"max_steps": 10}},
            {
                "lora": {
                    **lora(4, lora_dropout=0.3, use_dora=True),
                    "target_modules": "all-linear",
                },
                "training": {"max_steps": 7, "learning_rate": 1e-3, "seed": 7},
            },
            {
                "lora": lora(3, "down_proj", "up_proj", lora_dropout=0.5, bias="lora_only"),
                "training": {
                    "max_steps": 4,
                    "per_device_train_batch_size": 2,
                    "gradient_accumulation_steps": 3,
                    "label_smoothing_factor": 0.1,
                },
            },
            {
                "lora": lora(2, "q_proj", "k_proj", "v_proj", "lm_head", "embed_tokens"),
                "training": {"max_steps": 5, "eval_strategy": "steps", "eval_steps": 4},
            },
        ],
    )
    for ours, theirs in zip(together, alone, strict=True):
        require_equal_runs(ours, theirs)


@pytest.mark.parametrize("kind", ["bert", "distilbert"])
def test_classifiers_with_heads_and_the_dropout_of_their_base(kind, request, cls_csv, tmp_path):
    from lorakit.training import Recipe

    model = request.getfixturevalue(f"tiny_{kind}_dir")

    def make(output, **changes):
        training = {
            "use_cpu": True,
            "max_steps": 5,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-3,
            **changes.pop("training", {}),
        }
        return Recipe.check(
            {
                "model": model,
                "task": "SEQ_CLS",
                "data": {"train": cls_csv, "validation_fraction": 0.25},
                "lora": {"r": 2, "lora_dropout": 0.1},
                "output": str(tmp_path / output),
                "training": training,
                **changes,
            },
            "the recipe",
        )

    together, alone = both_ways(
        make,
        [
            {},
            {"lora": {"r": 4}, "training": {"seed": 3, "learning_rate": 3e-3}},
            {
                "training": {
                    "per_device_train_batch_size": 3,
                    "eval_strategy": "steps",
                    "eval_steps": 4,
                }
            },
        ],
    )
    for ours, theirs in zip(together, alone, strict=True):
        require_equal_runs(ours, theirs)
        assert ours.metrics.keys() == theirs.metrics.keys()
        for key, value in theirs.metrics.items():
            if "loss" in key or "accuracy" in key:
                assert ours.metrics[key] == pytest.approx(value, rel=1e-4), key


def test_a_run_whose_loss_is_no_number_leaves_and_the_others_go_on(recipe, monkeypatch):
    from lorakit.errors import TrainingError

    alone = train(recipe("alone", lora=lora(2, "q_proj")))
    bad = recipe(
        "bad", lora=lora(4, "v_proj"), training={"learning_rate": 1e30, "logging_steps": 1}
    )
    good, failed = train_together([recipe("good", lora=lora(2, "q_proj")), bad])
    assert (isinstance(failed, TrainingError) and "not a" in str(failed)) or "NaN" in str(failed)
    require_equal_runs(good, alone)


def test_a_run_that_stops_early_leaves(recipe):
    stopping = {
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_steps": 2,
        "learning_rate": 1e-12,
        "early_stopping_patience": 2,
        "load_best_model_at_end": True,
        "max_steps": 40,
    }
    together, alone = both_ways(
        recipe,
        [
            {"training": stopping},
            {"lora": lora(4, "up_proj"), "training": {"max_steps": 12, "eval_strategy": "epoch"}},
        ],
    )
    for ours, theirs in zip(together, alone, strict=True):
        require_equal_runs(ours, theirs)
        assert ours.steps == theirs.steps
    assert together[0].steps < 40


def test_a_stopped_group_resumes_together_and_alone_to_the_same_bits(recipe):
    from lorakit.errors import StoppedError
    from lorakit.training.stop_request import StopRequest

    changes = [{"lora": lora(2, "q_proj", lora_dropout=0.2)}, {"lora": lora(3, "v_proj")}]

    def made(prefix):
        return [recipe(f"{prefix}-{n}", **each) for n, each in enumerate(changes)]

    whole = train_together(made("whole"))
    for prefix in ("again", "apart"):
        stop = StopRequest()

        def stop_after_two(run, event, payload, stop=stop):
            if run == 0 and event == "step" and payload["step"] == 2:
                stop.set()

        found = train_together(made(prefix), stop=stop, on_event=stop_after_two)
        assert all(isinstance(result, StoppedError) for result in found)
    again = train_together(made("again"), resume=True)
    apart = [train(one, resume=True) for one in made("apart")]
    for first, second, third in zip(whole, again, apart, strict=True):
        assert adapter_bytes(second) == adapter_bytes(first)
        require_equal_runs(third, first)


def test_a_4_bit_base_is_shared(recipe):
    together, alone = both_ways(
        lambda output, **changes: recipe(
            output, quantization={"bits": 4, "compute_dtype": "float32"}, **changes
        ),
        [{"lora": lora(2, "q_proj", lora_dropout=0.1)}, {"lora": lora(4, "q_proj", "down_proj")}],
    )
    for ours, theirs in zip(together, alone, strict=True):
        require_equal_runs(ours, theirs)


def test_activation_checkpointing_repeats_the_masks(recipe):
    checkpointing = {"activation_checkpointing": True}
    together, alone = both_ways(
        recipe,
        [
            {"lora": lora(2, "q_proj", lora_dropout=0.3), "training": checkpointing},
            {"lora": lora(4, "v_proj", "up_proj"), "training": {**checkpointing, "max_steps": 2}},
        ],
    )
    for ours, theirs in zip(together, alone, strict=True):
        require_equal_runs(ours, theirs)


def test_a_run_that_fails_before_training_lets_the_others_train(recipe, tmp_path):
    from lorakit.errors import MissingFileError

    lost = recipe("lost", data={"train": str(tmp_path / "absent.jsonl")})
    failed, good = train_together([lost, recipe("good")])
    assert isinstance(failed, MissingFileError)
    assert good.steps == 4


def test_recipes_that_cannot_run_together_write_nothing(recipe, tmp_path):
    with pytest.raises(ConfigError, match="revision is null in the run of"):
        train_together([recipe("a"), recipe("b", revision="other")])
    with pytest.raises(ConfigError, match="got no recipe"):
        train_together([])
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]


def test_events_name_their_run(recipe):
    seen = []
    train_together([recipe("a"), recipe("b")], on_event=lambda *event: seen.append(event[:2]))
    for run in (0, 1):
        names = [name for number, name in seen if number == run]
        assert names[-1] == "finished" and {"data", "injected", "run_opened", "step"} <= {*names}


def test_preferences_train_together(tiny_llama_dir, tmp_path):
    from fixtures.preferences import preference_recipe

    def make(output, **changes):
        made = preference_recipe(tmp_path, tiny_llama_dir)
        return made.with_changes(
            {
                "output": str(tmp_path / output),
                "lora.lora_dropout": 0.1,
                "training.max_steps": 4,
                "training.use_cpu": True,
                "training.logging_steps": 1,
                **changes,
            },
            "the recipe",
        )

    together, alone = both_ways(make, [{}, {"lora.r": 3, "training.seed": 7}])
    for ours, theirs in zip(together, alone, strict=True):
        require_equal_runs(ours, theirs)


def test_preferences_train_without_the_dropout_of_their_base(tiny_gpt2_dir, tmp_path):
    from fixtures.preferences import preference_recipe

    made = preference_recipe(tmp_path, tiny_gpt2_dir)
    settings = {"training.max_steps": 2, "training.use_cpu": True}
    together, alone = both_ways(
        lambda output, **changes: made.with_changes(
            {"output": str(tmp_path / output), **settings, **changes}, "the recipe"
        ),
        [{}, {"training.seed": 7}],
    )
    for ours, theirs in zip(together, alone, strict=True):
        assert ours.train_loss == pytest.approx(theirs.train_loss, rel=1e-4)


def test_modules_and_tokens_that_are_trained_in_full(recipe, tmp_path):
    rows = [{"prompt": f"<a> what {n}", "completion": f" <a> {n}"} for n in range(12)]
    path = write_jsonl(tmp_path / "tokens.jsonl", rows)
    tokens = {"data": {"train": path, "new_tokens": ["<a>"]}}
    together, alone = both_ways(
        lambda output, **changes: recipe(output, **tokens, **changes),
        [
            {"lora": lora(2, "q_proj", modules_to_save=["lm_head", "norm"])},
            {"lora": lora(2, "v_proj", lora_dropout=0.2)},
        ],
    )
    for ours, theirs in zip(together, alone, strict=True):
        require_equal_runs(ours, theirs)


def test_a_part_that_is_trained_in_full_and_drops_is_refused(recipe, tiny_gpt2_dir):
    made = [
        recipe(name, model=tiny_gpt2_dir, lora=lora(2, "c_attn", modules_to_save=saved))
        for name, saved in (("whole", ["mlp"]), ("norm", ["ln_f"]))
    ]
    refused, trained = train_together(made)
    assert isinstance(refused, ConfigError) and trained.steps == 4
    assert "h.0.mlp drops activations and is trained in full" in str(refused)


def test_a_pooler_has_an_adapter(recipe, cls_csv, tmp_path):
    from tiny_models import bert
    from tiny_models.tokenizers import wordpiece

    tokenizer = wordpiece(has_types=True)
    base = bert("BertForSequenceClassification", vocab_size=len(tokenizer))
    for part in (base, tokenizer):
        part.save_pretrained(tmp_path / "base")
    together, alone = both_ways(
        lambda output, **changes: recipe(
            output,
            model=str(tmp_path / "base"),
            task="SEQ_CLS",
            data={"train": cls_csv, "validation_fraction": 0.25},
            **changes,
        ),
        [{"lora": {"r": 2, "lora_dropout": 0.3}}, {"lora": lora(3, "query", "pooler.dense")}],
    )
    for ours, theirs in zip(together, alone, strict=True):
        require_equal_runs(ours, theirs)


def test_a_group_in_each_of_several_processes_needs_to_say_so(recipe, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=r"own_runs\.beside_others, in each with other runs"):
        train_together([recipe("a"), recipe("b")])

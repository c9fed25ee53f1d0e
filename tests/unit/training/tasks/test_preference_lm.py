"""Runs by an objective: trained, evaluated, previewed, planned and resumed."""

import json

import pytest

from fixtures.preferences import CHATS, PAIRS, VOTES, preference_recipe
from lorakit import plan, train
from lorakit.errors import StoppedError
from lorakit.recipes.objective_section import ObjectiveConfig
from lorakit.training.evaluation import evaluate
from lorakit.training.objectives.direct import DPO, IPO
from lorakit.training.objectives.odds_ratio import ORPO
from lorakit.training.objectives.votes import KTO
from lorakit.training.stop_request import StopRequest
from lorakit.training.tasks.preference_lm import objective_for

TRAINING = {
    "use_cpu": True,
    "learning_rate": 1e-2,
    "logging_steps": 1,
    "per_device_train_batch_size": 4,
    "num_train_epochs": 3,
}


def run(tmp_path, model, rows=PAIRS, objective=None, name="run", **options):
    recipe = preference_recipe(tmp_path, model, rows, objective, training=TRAINING, **options)
    return recipe.model_copy(update={"output": str(tmp_path / name)})


@pytest.mark.parametrize(
    ("rows", "objective"),
    [
        (CHATS, {"type": "dpo", "sft_weight": 0.1}),
        (PAIRS, {"type": "orpo"}),
        (VOTES, {"type": "kto"}),
    ],
)
def test_an_objective_is_learned_and_reported(tmp_path, tiny_llama_dir, rows, objective):
    recipe = run(tmp_path, tiny_llama_dir, rows, objective)
    result = train(recipe)
    names = {"loss", "accuracy", "margin", "chosen_reward", "rejected_reward", "kl"}
    names |= {"chosen_log_prob", "rejected_log_prob"}
    names |= {"preference_accuracy"} if objective["type"] != "kto" else set()
    assert result.metrics.keys() == {f"eval_{name}" for name in names}
    assert result.metrics["eval_accuracy"] > 0.8 and result.metrics["eval_kl"] > 0
    logged = [
        json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    ]
    steps = [row for row in logged if row["event"] == "step"]
    assert steps[-1]["margin"] > steps[0]["margin"]
    again = evaluate(tmp_path / "run")
    assert again == pytest.approx(result.metrics, rel=1e-4, abs=1e-5)
    report = (tmp_path / "run/report.md").read_text()
    assert "| validation accuracy |" in report and "| validation kl |" in report
    assert plan(recipe).peak_bytes > 0


def test_a_run_that_is_resumed_has_the_same_bits(tmp_path, tiny_llama_dir):
    whole = train(run(tmp_path, tiny_llama_dir))
    recipe, stop = run(tmp_path, tiny_llama_dir, name="stopped"), StopRequest()

    def watch(name, payload):
        if name == "step" and payload["step"] == 4:
            stop.set()

    with pytest.raises(StoppedError):
        train(recipe, on_event=watch, stop=stop)
    resumed = train(recipe, resume=True)
    file = "adapter_model.safetensors"
    assert (resumed.adapter_path / file).read_bytes() == (whole.adapter_path / file).read_bytes()
    first, second = (
        [
            {key: value for key, value in json.loads(line).items() if key in ("step", "margin")}
            for line in (folder.run_dir / "metrics.jsonl").read_text().splitlines()
        ]
        for folder in (whole, resumed)
    )
    assert first == second


def test_a_second_round_compares_with_the_adapter_it_starts_from(tmp_path, tiny_llama_dir):
    once = {"training.num_train_epochs": 1}
    first = train(run(tmp_path, tiny_llama_dir, name="first").with_changes(once, "the test"))
    recipe = run(tmp_path, tiny_llama_dir, name="second").with_changes(once, "the test")
    second = train(recipe.model_copy(update={"start_from": str(first.run_dir)}))
    logged = map(json.loads, (second.run_dir / "metrics.jsonl").read_text().splitlines())
    losses = [row["loss"] for row in logged if row["event"] == "step"]
    assert losses[0] == pytest.approx(0.693147, abs=1e-4)
    assert evaluate(second.run_dir) == pytest.approx(second.metrics, rel=1e-3, abs=1e-4)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"type": "dpo", "loss": "hinge"}, DPO(0.1, 0.0, "hinge")),
        ({"type": "ipo", "beta": 0.5, "sft_weight": 1}, IPO(0.5, 1.0)),
        ({"type": "orpo"}, ORPO(0.1)),
        ({"type": "kto", "desirable_weight": 2}, KTO(0.1, 2.0, 1.0)),
    ],
)
def test_each_type_of_objective_has_its_class(values, expected):
    assert objective_for(ObjectiveConfig(**values)) == expected

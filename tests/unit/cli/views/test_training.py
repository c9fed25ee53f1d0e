"""What is shown of the events of a run."""

from pathlib import Path
from types import SimpleNamespace

from fixtures.printed import flat
from lorakit.cli.views.training import RunView, show_injection
from lorakit.config import LoraConfig
from lorakit.injection.report import Injection, Match


def injection(**changes):
    matches = (Match("a.q", "Linear", 8, 4, 2, 1.0), Match("b.q", "Linear", 8, 4, 2, 1.0))
    values = {"matches": matches, "heads": (), "biases": (), "skipped": (), "factor_dtype": "f32"}
    return Injection("default", LoraConfig(r=2), **{**values, "base_dtype": "nf4", **changes})


COUNT = SimpleNamespace(trainable=1234, total=99_000, trainable_share=1234 / 99_000)


def test_an_injection_names_all_that_is_trained_and_left_out_once(capsys):
    show_injection(
        injection(
            heads=("score",),
            biases=("a.bias", "b.bias"),
            skipped=(("score", "is trained in full"), ("lm_head", "is the output")),
            tokens=((("embed", "lm_head"), 3),),
            notes=("The task is CAUSAL_LM.",),
        ),
        COUNT,
    )
    out = flat(capsys.readouterr().out)
    assert "q Linear 2 8 4 2 1 48" in out
    assert (
        "trained in full: score trained biases: 2 trained tokens: 3 of embed = lm_head left out: "
        "lm_head (is the output) trainable: 1,234 of 99,000 parameters (1.246%) The task is "
        "CAUSAL_LM. dtypes: factors f32, base nf4"
    ) in out


def test_events_say_how_far_a_run_is(capsys):
    with RunView() as view:
        data = {"train_examples": 1200, "validation_examples": 0, "notes": ["9 were cut."]}
        view("data", {**data, "task_type": "CAUSAL_LM", "labels": None})
        assert view.path is None
        opening = {"path": "runs/a", "resumed_from": "checkpoint-4", "note": None}
        view("run_opened", {**opening, "removed": {"checkpoint-8": "it is incomplete"}})
        assert view.path == Path("runs/a") and not view.is_finished
        view("notes", {"notes": ["Watch this."]})
        view("an event of a later version", {})
        view("finished", {})
        assert view.is_finished
    assert flat(capsys.readouterr().out) == (
        "Data training examples 1,200 validation examples none 9 were cut. Training in runs/a "
        "resuming from checkpoint-4 removed checkpoint-8: it is incomplete Watch this."
    )


def test_the_comparison_with_the_base_is_announced(capsys):
    RunView()("comparing", {"examples": 1234})
    shown = "Comparing with the base on 1,234 examples (evaluation.compare_with_base) ..."
    assert flat(capsys.readouterr().out) == shown

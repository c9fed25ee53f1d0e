"""Lines of runs that train together: each has the name of its run."""

from types import SimpleNamespace

from lorakit.cli.views.together import GroupView, short_names


def test_each_line_begins_with_its_run(capsys):
    view = GroupView(["one", "other"])
    count = SimpleNamespace(trainable=1024, total=4096)
    view(0, "injected", {"parameter_count": count})
    view(1, "data", {"train_examples": 1200, "validation_examples": 0, "notes": ("Seen.",)})
    view(0, "dtype", {"note": "float32 it is."})
    view(1, "run_opened", {"path": "runs/other", "resumed_from": "runs/other/checkpoint-2"})
    step = {"step": 5, "max_steps": 10, "epoch": 0.5, "loss": 1.25, "learning_rate": 1e-4}
    view(0, "step", {**step, "logged": False})
    view(0, "step", {**step, "logged": True})
    view(1, "evaluation", {"epoch": 1.0, "metrics": {"eval_loss": 0.5}})
    view(0, "notes", {"notes": ("A note.",)})
    view(0, "finished", {"result": SimpleNamespace(steps=1000)})
    assert capsys.readouterr().out.splitlines() == [
        "one    trainable 1,024 of 4,096 parameters",
        "other  1,200 training examples, no for validation",
        "other  Seen.",
        "one    float32 it is.",
        "other  training in runs/other, resuming from checkpoint-2",
        "one    step 5/10  epoch 0.50  loss 1.2500  lr 1.0e-04",
        "other  after epoch 1: loss 0.5",
        "one    A note.",
        "one    finished after 1,000 steps",
    ]
    assert view.opened == {1}


def test_names_are_as_short_as_tells_them_apart():
    assert short_names(["runs/a", "runs/b"]) == ["a", "b"]
    assert short_names(["x/runs/a", "y/runs/a"]) == ["x/runs/a", "y/runs/a"]
    assert short_names(["only"]) == ["only"]

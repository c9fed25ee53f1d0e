"""A group of runs: they join and leave between steps, and learn what others have settled."""

import threading

import pytest

from fixtures.together import lora, require_equal_runs
from lorakit.errors import ConfigError
from lorakit.training import train
from lorakit.training.together import RunGroup


def test_a_run_may_join_while_another_trains(recipe):
    group, joined = RunGroup(), []

    def join(event, payload):
        if event == "step" and payload["step"] == 2 and not joined:
            joined.append(group.start(recipe("late", lora=lora(4, "v_proj", lora_dropout=0.2))))

    first = group.start(recipe("first", lora=lora(2, "q_proj")), on_event=join)
    results = [first.wait(), joined[0].wait()]
    alone = [
        train(recipe("alone-1", lora=lora(2, "q_proj"))),
        train(recipe("alone-2", lora=lora(4, "v_proj", lora_dropout=0.2))),
    ]
    for ours, theirs in zip(results, alone, strict=True):
        require_equal_runs(ours, theirs)


def test_a_group_can_be_used_again_after_its_runs_have_ended(recipe):
    group = RunGroup()
    assert [group.start(recipe(name)).wait().steps for name in ("a", "b")] == [4, 4]


def test_an_output_of_a_run_before_is_refused(recipe):
    group = RunGroup()
    group.start(recipe("a")).wait()
    with pytest.raises(ConfigError, match="twice"):
        group.start(recipe("a"))


def test_dtype_auto_is_chosen_once_for_all(recipe, monkeypatch):
    from lorakit.training import setup
    from lorakit.training.dtype_choice import FLOAT32, Candidates, DtypeChoice

    measured = []

    def choice(self):
        measured.append(threading.current_thread().name)
        return DtypeChoice(FLOAT32, "float32 it is.", ())

    monkeypatch.setattr(Candidates, "without_measuring", choice)
    monkeypatch.setattr(setup, "_measure_dtype", lambda *a: (None, choice(None)))
    group = RunGroup()
    runs = [group.start(recipe(name, dtype="auto")) for name in ("a", "b")]
    results = [run.wait() for run in runs]
    assert {*measured} == {"run-0"}
    from lorakit.training import RunDirectory

    assert {RunDirectory.open(result.run_dir).recipe().dtype for result in results} == {"float32"}


def test_other_labels_are_refused_by_name(tiny_bert_dir, cls_csv, tmp_path):
    import csv

    from lorakit.training import Recipe

    with open(cls_csv) as file:
        rows = list(csv.DictReader(file))
    fewer = tmp_path / "fewer.csv"
    labels = sorted({row["label"] for row in rows})
    with fewer.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(row | {"label": f"x{labels.index(row['label'])}"} for row in rows)

    def recipe(data, output):
        return Recipe.check(
            {
                "model": tiny_bert_dir,
                "task": "SEQ_CLS",
                "data": {"train": str(data)},
                "training": {"use_cpu": True, "max_steps": 1},
                "output": str(tmp_path / output),
            },
            "the recipe",
        )

    group = RunGroup()
    runs = [group.start(recipe(cls_csv, "a")), group.start(recipe(fewer, "b"))]
    assert runs[0].wait().steps == 1
    with pytest.raises(ConfigError, match=r"labels is \[.*\] there and \[.*\] here"):
        runs[1].wait()

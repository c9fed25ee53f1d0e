"""A memory plan in words, bars and tables."""

from dataclasses import replace

import pytest

from fixtures.printed import flat
from lorakit.cli.views.plan import (
    show_changes,
    show_depths,
    show_measurement,
    show_plan,
    summary,
)
from lorakit.planning import MemoryPlan
from lorakit.planning.alternatives import Change
from lorakit.planning.depths import DepthPlan
from lorakit.planning.live_storages import Purpose
from lorakit.planning.measurement import Measurement
from lorakit.planning.memory_plan import PURPOSES

MB = 10**6
SIZES = {
    **{"base_weights_bytes": 60 * MB, "adapter_bytes": MB, "gradient_bytes": MB},
    **{"optimizer_bytes": 2 * MB, "saved_activation_bytes": 20 * MB, "logits_bytes": 0},
    **{"temporary_bytes": 0, "peak_bytes": 80 * MB, "process_bytes": 20 * MB},
    "adapter_file_bytes": MB,
}
PLAN = MemoryPlan(
    **SIZES,
    peak_place="layers.1.mlp",
    at_peak={"base weights": 60 * MB, "saved activations": 20 * MB},
    method="adapter",
    device="cpu",
    processes=1,
    trainable=1000,
    total=60_000,
    memory_bytes=200 * MB,
    batch_rows=4,
    batch_tokens=32,
    updates=3,
    batches=6,
    epochs=1.0,
    tokens=None,
    notes=("The longest of 9 examples.",),
)
SMALL = replace(PLAN, memory_bytes=50 * MB)
UNKNOWN = replace(PLAN, memory_bytes=None)


@pytest.mark.parametrize(
    ("plan", "sentence"),
    [
        (PLAN, "It fits: 100.0 MB of 200.0 MB."),
        (SMALL, "It does not fit: it needs 100.0 MB of 50.0 MB."),
        (UNKNOWN, "It needs 100.0 MB; the memory of the device is not known here (--memory)."),
    ],
)
def test_the_verdict_counts_the_process_too(plan, sentence):
    assert plan.verdict == sentence


def test_one_line_says_the_peak_and_the_file():
    parts = "at the peak (60.0 MB base, 20.0 MB activations), adapter 1.0 MB"
    assert summary(PLAN) == f"Planned: 100.0 MB of 200.0 MB {parts}"
    assert summary(UNKNOWN) == f"Planned: 100.0 MB {parts}"


def test_every_purpose_has_its_place_in_the_order():
    assert set(PURPOSES) == {purpose.value for purpose in Purpose}


def test_bars_have_the_share_of_the_peak(capsys):
    show_plan(replace(PLAN, processes=2))
    out = capsys.readouterr().out
    bars = {
        line.split("  ")[1].strip(): line.count("█") for line in out.splitlines() if "█" in line
    }
    assert bars == {"base weights": 30, "saved activations": 10}
    words = flat(out)
    assert "on cpu, each of 2 processes" in words
    assert "batch 4 x 32 tokens. The longest of 9 examples. parameters 1,000 trained" in words
    assert "optimizer steps 3, each of 2 micro-batches epochs 1" in words


def test_changes_are_listed_with_their_overrides_and_combinations_without(capsys):
    less = replace(PLAN, peak_bytes=20 * MB, memory_bytes=50 * MB)
    values = {"a.b": 1, "c": "x y"}
    show_changes(
        [Change("both", values, less, 60 * MB), Change("all", {**values, "d": 1}, SMALL, 1)]
    )
    words = flat(capsys.readouterr().out)
    assert "both 60.0 MB 40.0 MB yes" in words and "100.0 MB no" in words
    assert words.endswith("both: a.b=1 'c=x y'")
    show_changes([])
    assert "No change that lorakit knows. Choose a smaller model." in capsys.readouterr().out


def test_a_measurement_is_compared_with_the_plan(capsys):
    show_measurement(Measurement(2.0, 60, replace(PLAN, peak_bytes=84 * MB)), PLAN)
    words = flat(capsys.readouterr().out)
    assert (
        "the run about 2 min 00 s, evaluations not included" in words
        and "84.0 MB (+5.0% of the plan)" in words
    )


def test_depths_are_a_small_table(capsys):
    show_depths({}, MB)
    assert capsys.readouterr().out == ""
    plans = {
        "all": DepthPlan(8, 1.0, 1.0, 90 * MB, 0),
        "upper half": DepthPlan(4, 0.7654, 0.5321, 70 * MB, 2 * MB),
    }
    show_depths(plans, 5 * MB)
    text = flat(capsys.readouterr().out)
    assert "layers first epoch later epochs memory kept on disk" in text
    assert "all (8) 1.00 1.00 90.0 MB 0 B upper half (4) 0.77 0.53 70.0 MB 2.0 MB" in text
    assert "frozen_part.cache_bytes" not in text
    show_depths(plans, MB)
    assert "Not everything is kept: frozen_part.cache_bytes is 1.0 MB." in flat(
        capsys.readouterr().out
    )

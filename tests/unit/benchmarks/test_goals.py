import dataclasses

import pytest
from benchmarks.goals import GOALS, verdict
from benchmarks.results import NO_BF16, matching
from benchmarks.step import FORWARD_BACKWARD
from benchmarks.variants import LORAKIT_MLP, PEFT

from invented_rows import ORIGIN, invented_rows

ROWS = invented_rows()
STEP = GOALS[0]
DECODE = next(goal for goal in GOALS if goal.where["benchmark"] == "rows")
SWITCH = next(goal for goal in GOALS if goal.what == "switching")
BF16 = next(goal for goal in GOALS if goal.where["dtype"] == "bfloat16")


def with_number(goal, value):
    name = "ratio" if "ratio_to" in goal.where else "p50"
    [one] = matching(ROWS, **goal.where)
    return [dataclasses.replace(one, **{name: value})]


@pytest.mark.parametrize("goal", GOALS, ids=lambda goal: f"{goal.what} {goal.where['dtype']}")
def test_a_full_run_makes_the_row_of_every_goal(goal):
    assert len(matching(ROWS, **goal.where)) == 1


@pytest.mark.parametrize("goal", [goal for goal in GOALS if goal.aim is not None])
def test_an_aim_asks_for_more_than_the_goal(goal):
    assert (goal.aim > goal.must) == goal.at_least
    assert goal.aim != goal.must


@pytest.mark.parametrize(
    ("goal", "value", "text"),
    [
        (STEP, 1.1201, "missed"),
        (STEP, 1.12, "met"),
        (STEP, 1.051, "met"),
        (STEP, 1.05, "met, with the aim"),
        (DECODE, 0.849, "missed"),
        (DECODE, 0.85, "met"),
        (DECODE, 0.95, "met, with the aim"),
        (SWITCH, 0.0011, "missed"),
        (SWITCH, 0.0009, "met"),
    ],
)
def test_the_verdict_follows_the_number(goal, value, text):
    found = verdict(goal, with_number(goal, value), ORIGIN.device)
    assert (found.text, found.reached) == (text, value)


def test_what_is_missing_is_named():
    def why(goal, rows, device=ORIGIN.device):
        return verdict(goal, rows, device).text

    step = matching(ROWS, benchmark="step", measure=FORWARD_BACKWARD)
    of_lorakit = matching(step, variant=LORAKIT_MLP)
    assert why(STEP, []) == "not measured: no row of benchmarks.step"
    assert why(STEP, matching(step, variant=PEFT)) == "not measured: no row of lorakit+mlp"
    others = [one for one in of_lorakit if one.ratio_to != "limit"]
    assert why(STEP, others) == "not measured: no row of limit"
    assert why(BF16, [], f"Some CPU, AVX2, {NO_BF16}, threads 2") == f"not measured: {NO_BF16}"
    assert why(BF16, [], "Some GPU, CUDA 13") == "not measured: no row of benchmarks.step"


def test_bfloat16_that_was_measured_all_the_same_counts():
    text = verdict(BF16, with_number(BF16, 9.0), f"Some CPU, {NO_BF16}").text
    assert text == "missed"

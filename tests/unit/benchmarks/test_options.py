import pytest
import torch
from benchmarks.options import QUICK_RESULTS, parse
from benchmarks.results import RESULTS


@pytest.mark.parametrize("rounds", [1, 6])
def test_fewer_than_seven_rounds_are_refused(rounds, capsys):
    with pytest.raises(SystemExit) as stopped:
        parse("step", "", ["--rounds", str(rounds)])
    assert stopped.value.code == 2
    assert f"--rounds {rounds}: a median of fewer than 7 rounds" in capsys.readouterr().err


def test_a_quick_run_may_have_two_rounds_and_keeps_its_rows_apart():
    quick, full = parse("step", "", ["--quick"]), parse("step", "", [])
    assert (quick.rounds, quick.output) == (2, QUICK_RESULTS)
    assert (full.rounds, full.output) == (7, RESULTS)
    assert parse("step", "", ["--rounds", "9"]).rounds == 9


def test_shapes_take_the_batch_that_is_asked_for():
    given = ["--shape", "tiny-llama:3", "tiny-bert", "--batch", "5", "7", "--dtype", "bfloat16"]
    options = parse("step", "", given)
    assert [(s.name, s.layers, s.tokens) for s in options.shapes] == [
        ("tiny-llama:3", 3, 35),
        ("tiny-bert", 2, 35),
    ]
    assert options.dtype == torch.bfloat16


def test_a_shape_that_nobody_knows_is_refused_by_name(capsys):
    with pytest.raises(SystemExit):
        parse("step", "", ["--shape", "lama"])
    assert "No shape is called 'lama'; shapes: llama-69m" in capsys.readouterr().err


def test_bfloat16_is_not_run_where_it_crawls(monkeypatch, capsys):
    monkeypatch.setattr("benchmarks.options.has_bf16_instructions", lambda: False)
    options = parse("step", "", [])
    assert options.runs(torch.float32)
    assert not options.runs(torch.bfloat16)
    assert "not run: bfloat16 on a CPU without bf16 instructions" in capsys.readouterr().out
    assert parse("step", "", ["--force"]).runs(torch.bfloat16)

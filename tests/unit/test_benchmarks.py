"""The benchmarks themselves, on tiny shapes: that they run and what rows they make."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
from benchmarks import (
    BENCHMARKS,
    bracketing,
    busy_machine,
    decode_4bit,
    latency,
    output_loss,
    predict,
    preferences,
    qlora,
    serving,
    step,
    thin_products,
)
from benchmarks.__main__ import main, run_each
from benchmarks.page import by_device, machine_text
from benchmarks.results import ROOT, matching, read_rows
from benchmarks.step import FORWARD_BACKWARD, PEAK, SAVED, TOTAL, WITH_OPTIMIZER
from benchmarks.variants import FULL, LIMIT, LORAKIT, LORAKIT_MLP, LORALIB, PEFT


def test_every_module_that_measures_is_named():
    files = {path.stem for path in Path(ROOT / "benchmarks").glob("[a-z]*.py")}
    modules = {name: importlib.import_module(f"benchmarks.{name}") for name in files}
    measuring = {name for name, module in modules.items() if hasattr(module, "measure")}
    assert measuring == set(BENCHMARKS)


def test_a_step_is_measured_against_all_its_peers(tmp_path, capsys):
    given = ["--quick", "--shape", "tiny-llama", "--dtype", "float32"]
    given += ["--dropout", "0.05", "--r", "8"]
    rows = step.main([*given, "--output", str(tmp_path)])
    read = read_rows(["step"], tmp_path)
    assert [one.key() for one in read] == [one.key() for one in rows]
    assert {one.variant for one in rows} == {LIMIT, FULL, LORAKIT, LORAKIT_MLP, PEFT, LORALIB}
    measures = {FORWARD_BACKWARD, WITH_OPTIMIZER, SAVED, PEAK, TOTAL}
    assert {one.measure for one in rows} == measures
    assert {(one.r, one.dropout, one.setting) for one in rows} == {(8, 0.05, "2 x 16")}
    for one in rows:
        assert 0 < one.p20 <= one.p50 <= one.p80
        assert one.rounds == (1 if one.unit == "B" else 2)
    medians = {one.variant: one.p50 for one in matching(rows, measure=SAVED, ratio_to=LIMIT)}
    assert medians[LORAKIT_MLP] < medians[LORAKIT] < medians[PEFT]
    assert "tiny-llama, torch.float32, dropout 0.05, r=8" in capsys.readouterr().out
    [(device, own_rows)] = by_device(read).items()
    assert "**tiny-llama, 2 x 16, float32, dropout 0.05, r=8**" in machine_text(device, own_rows)


@pytest.mark.filterwarnings("ignore:MatMul8bitLt.*:UserWarning")
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # TRL
@pytest.mark.parametrize(
    "benchmark",
    [
        bracketing,
        busy_machine,
        decode_4bit,
        latency,
        output_loss,
        predict,
        preferences,
        qlora,
        serving,
        thin_products,
    ],
)
@pytest.mark.usefixtures("forked_commands")  # for those that start processes
def test_others_run(benchmark, tmp_path):
    rows = benchmark.main(["--quick", "--rounds", "1", "--output", str(tmp_path)])
    name = benchmark.__name__.rpartition(".")[2]
    assert rows
    assert [one.key() for one in read_rows([name], tmp_path)] == [one.key() for one in rows]


@pytest.mark.usefixtures("forked_commands")
def test_each_runs_in_its_own_process_and_a_failing_one_does_not_stop_the_rest(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(ROOT)
    given = ["--quick", "--output", str(tmp_path)]
    assert run_each(["measure_nothing", "bracketing"], given) == ["measure_nothing"]
    assert read_rows(["bracketing"], tmp_path)


def test_all_are_run_with_the_options_and_the_page_is_written_beside_quick_rows(
    tmp_path, monkeypatch, capsys
):
    commands = []

    def run(command, check):
        commands.append(command)
        return subprocess.CompletedProcess(command, 3 if "benchmarks.growth" in command else 0)

    monkeypatch.setattr(subprocess, "run", run)
    given = ["--quick", "--output", str(tmp_path), "--commit", "abc"]
    assert main(given) == 1
    expected = [[sys.executable, "-m", f"benchmarks.{name}", *given] for name in BENCHMARKS]
    assert commands == expected
    printed = capsys.readouterr()
    assert printed.err.strip() == "Failed: growth"
    assert (tmp_path / "performance.md").exists()
    monkeypatch.setattr(
        subprocess, "run", lambda command, check: subprocess.CompletedProcess([], 0)
    )
    assert main(given) == 0


def test_an_option_that_nobody_knows_runs_nothing(monkeypatch):
    monkeypatch.setattr(subprocess, "run", None)
    with pytest.raises(SystemExit) as stopped:
        main(["--qick"])
    assert stopped.value.code == 2

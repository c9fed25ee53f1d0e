"""What `lorakit analyze` writes and says."""

import csv
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from lorakit import Adapter, LoraConfig, add_adapter, save_adapter
from lorakit.analysis import analyze_adapter
from lorakit.analysis.report_text import percent
from lorakit.cli.commands.analyze import default_output, short_names


def make_adapter(directory, base, seed=0, r=4, targets=("q_proj", "v_proj"), zero=False, **more):
    """Save an adapter that looks trained: B is not zero, unless it is to be."""
    model = AutoModelForCausalLM.from_pretrained(base)
    config = LoraConfig(
        r=r, lora_alpha=8, target_modules=list(targets), task_type="CAUSAL_LM", **more
    )
    torch.manual_seed(seed)
    add_adapter(model, config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name and not zero:
            torch.nn.init.normal_(parameter)
    save_adapter(model, directory)
    return directory


@pytest.fixture(scope="module")
def made_once(tiny_llama_dir, tmp_path_factory):
    """A folder with the adapters "mine" and "theirs"."""
    folder = tmp_path_factory.mktemp("adapters")
    make_adapter(folder / "mine", tiny_llama_dir)
    make_adapter(folder / "theirs", tiny_llama_dir, seed=1, r=2)
    return folder


@pytest.fixture
def adapter(made_once, tmp_path):
    return shutil.copytree(made_once / "mine", tmp_path / "mine")


@pytest.fixture
def other(made_once, tmp_path):
    return shutil.copytree(made_once / "theirs", tmp_path / "theirs")


# The tests of the report draw its pictures; the first test here does so too.
blank = pytest.mark.usefixtures("blank_pictures")


def change_config(directory, **values):
    file = directory / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def text_of(result):
    return " ".join(result.stdout.split())


def rows_of(path):
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


def test_a_run_gets_its_report_inside(cli, cls_run, tmp_path):
    run = tmp_path / "my-run"
    shutil.copytree(cls_run, run)
    result = cli("analyze", run)
    assert result.exit_code == 0, result.stderr
    assert (run / "analysis" / "report.md").is_file()
    assert f"{run / 'analysis' / 'report.md'} (" in text_of(result)
    rows = rows_of(run / "analysis" / "layers.csv")
    adapter = Adapter.load(run / "adapter")
    assert [row["module"] for row in rows] == list(adapter.factors)
    assert {row["adapter"] for row in rows} == {"my-run"}
    assert all(float(row["amplification_factor"]) > 0 for row in rows)
    assert "amplification" in result.stdout
    choice = analyze_adapter(adapter).rank_choice()
    rank = choice.together
    kept = f"Rank {rank} keeps {percent(choice.kept_together)} of the energy of my-run and is the"
    assert f"{kept} smallest rank that keeps 90%" in " ".join(result.stdout.split())
    command = f"lorakit train {run}/recipe.yaml lora.r={rank} output={run}-r{rank}"
    assert command in result.stdout
    # The run is as usable as before, and the report is not overwritten.
    assert cli("inspect", run).exit_code == 0
    again = cli("analyze", run)
    assert again.exit_code == 2
    assert again.stderr == (
        f"Error: Cannot write the analysis to {run / 'analysis'}: it holds files already, expected "
        "a new or empty directory. Name another one (--output on the command line), or remove it.\n"
    )


@blank
def test_the_factor_is_that_of_the_adapters_own_base(cli, adapter, tiny_llama_dir, tmp_path):
    result = cli("analyze", adapter, "--output", tmp_path / "out", "--seed", 3)
    assert result.exit_code == 0, result.stderr
    model = AutoModelForCausalLM.from_pretrained(tiny_llama_dir)
    loaded = Adapter.load(adapter)
    weights = {path: model.get_submodule(path).weight for path in loaded.factors}
    expected = analyze_adapter(loaded, weights, seed=3).amplifications
    for row, found in zip(rows_of(tmp_path / "out" / "layers.csv"), expected, strict=True):
        assert float(row["amplification_factor"]) == pytest.approx(found.factor, rel=1e-5)
        assert float(row["base_norm_along_random"]) == pytest.approx(found.along_random, rel=1e-5)


@blank
def test_an_adapter_that_stands_alone_gets_its_report_beside_it(cli, adapter, tmp_path):
    result = cli("analyze", adapter)
    assert result.exit_code == 0, result.stderr
    assert (tmp_path / "mine-analysis" / "report.md").is_file()
    assert sorted(path.name for path in adapter.iterdir()) == [
        *("adapter_config.json", "adapter_model.safetensors"),
    ]
    assert f"lorakit analyze {adapter} OTHER" in result.stdout


@blank
def test_two_are_compared(cli, adapter, other, tmp_path):
    result = cli("analyze", adapter, other)
    assert result.exit_code == 0, result.stderr
    folder = tmp_path / "mine-analysis-theirs"
    assert {"similarity.png", "similarity.csv", "1-spectra.png", "2-spectra.png"} <= {
        path.name for path in folder.iterdir()
    }
    rows = rows_of(folder / "similarity.csv")
    assert {(row["first"], row["second"]) for row in rows} == {("mine", "theirs")}
    assert "φ between mine and theirs" in result.stdout
    # Ranks 4 and 2 in a width of 32: random directions have 2 / 32, and 4 / 32 for all of them.
    assert "(random: 0.062)" in result.stdout and "(random: 0.125)" in result.stdout
    assert "modules 4 in both" in text_of(result)


@blank
def test_an_adapter_compared_with_itself_is_the_same(cli, adapter, tmp_path):
    copy = tmp_path / "elsewhere" / "mine"
    shutil.copytree(adapter, copy)
    result = cli("analyze", adapter, copy, "--output", tmp_path / "out", "--no-base")
    assert result.exit_code == 0, result.stderr
    rows = rows_of(tmp_path / "out" / "similarity.csv")
    assert all(
        float(row["phi_input"]) == pytest.approx(1, abs=1e-6)
        for row in rows
        if row["i"] == row["j"]
    )
    assert len({row["first"] for row in rows} | {row["second"] for row in rows}) == 2


@blank
def test_without_the_base_there_are_no_factors_and_that_is_said(cli, adapter, tmp_path):
    result = cli("analyze", adapter, "--no-base", "--output", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    assert "Loading" not in result.stdout and "amplification" not in result.stdout
    report = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "The amplification factor is left out: the base was not loaded (--no-base)." in report


@blank
def test_a_base_that_is_gone_costs_the_factors_alone(cli, adapter, tmp_path):
    change_config(adapter, base_model_name_or_path="./gone")
    result = cli("analyze", adapter, "--output", tmp_path / "out")
    assert result.exit_code == 0
    assert "No amplification factors, because the base cannot be loaded: " in result.stderr
    report = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "The amplification factor is left out: the base cannot be loaded." in report
    assert "'./gone', which does not exist" in report


def test_a_base_that_is_named_must_be_there_and_fit(cli, adapter, tiny_gpt2_dir, tmp_path):
    result = cli("analyze", adapter, "--base", "./gone", "--output", tmp_path / "out")
    assert result.exit_code == 2
    assert "No model in --base: got './gone', which does not exist" in result.stderr
    result = cli("analyze", adapter, "--base", tiny_gpt2_dir, "--output", tmp_path / "out")
    assert result.exit_code == 2
    assert "The adapter was made for another base" in result.stderr
    assert not (tmp_path / "out").exists()


@blank
def test_a_quantized_base_is_made_dense(cli, quantized_run, tmp_path):
    result = cli("analyze", quantized_run, "--output", tmp_path / "out")
    assert result.exit_code == 0, result.stderr
    rows = rows_of(tmp_path / "out" / "layers.csv")
    assert all(float(row["amplification_factor"]) > 0 for row in rows)


@blank
@pytest.mark.parametrize("use_dora", [False, True])
def test_the_lengths_of_rows_are_left_out_and_that_is_said(cli, tiny_llama_dir, tmp_path, use_dora):
    made = make_adapter(tmp_path / "made", tiny_llama_dir, use_dora=use_dora)
    result = cli("analyze", made, "--output", tmp_path / "a", "--no-base")
    assert result.exit_code == 0, result.stderr
    report = (tmp_path / "a" / "report.md").read_text()
    for text in (" ".join(result.stdout.split()), report):
        assert ("Only s·B·A is measured" in text) == use_dora


@blank
def test_the_share_decides_the_rank(cli, adapter, tmp_path):
    analysis = analyze_adapter(Adapter.load(adapter))
    ranks = {}
    for share in ("0.3", "1"):
        result = cli("analyze", adapter, "--no-base", "--energy", share, "-o", tmp_path / share)
        assert result.exit_code == 0, result.stderr
        ranks[share] = analysis.rank_choice(float(share)).together
        assert f"rank for {100 * float(share):g}%" in result.stdout
    assert ranks["0.3"] < ranks["1"] == 4
    report = (tmp_path / "0.3/report.md").read_text()
    assert f"Rank {ranks['0.3']} keeps " in report
    assert "is the smallest rank that keeps 30%" in report


@pytest.mark.parametrize("share", ["0", "-1", "90"])
def test_a_share_that_is_none_is_refused(cli, adapter, share):
    result = cli("analyze", adapter, "--energy", share)
    assert result.exit_code == 2
    assert f"in energy: got {share}, expected a number above 0 and at most 1" in result.stderr


def test_an_adapter_that_was_never_trained_is_called_so(cli, tiny_llama_dir, tmp_path):
    fresh = make_adapter(tmp_path / "fresh", tiny_llama_dir, zero=True)
    result = cli("analyze", fresh)
    assert result.exit_code == 2
    assert "Nothing to analyse in fresh: got ΔW = 0 in all 4 modules" in result.stderr
    assert "never trained and changes nothing" in result.stderr
    assert not (tmp_path / "fresh-analysis").exists()


def test_numbers_that_are_none_are_named(cli, adapter):
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    next(iter(tensors.values()))[0, 0] = float("nan")
    save_file(tensors, file, metadata={"format": "pt"})
    result = cli("analyze", adapter)
    assert result.exit_code == 2 and "has NaN; expected finite" in result.stderr


def test_what_is_no_adapter_is_explained(cli, tmp_path):
    result = cli("analyze", tmp_path)
    assert result.exit_code == 2 and f"No adapter in {tmp_path}" in result.stderr
    result = cli("analyze", tmp_path / "none")
    assert result.exit_code == 2 and "There is no adapter directory" in result.stderr


@blank
def test_adapters_of_different_bases_are_refused_unless_the_base_is_named(
    cli, adapter, other, tiny_llama_dir, tmp_path
):
    change_config(other, base_model_name_or_path="another/base")
    result = cli("analyze", adapter, other)
    assert result.exit_code == 2
    assert f"adapters of the bases '{tiny_llama_dir}' and 'another/base'" in result.stderr
    assert "name it with --base" in result.stderr
    result = cli("analyze", adapter, other, "--base", tiny_llama_dir, "-o", tmp_path / "out")
    assert result.exit_code == 0, result.stderr


def test_adapters_with_nothing_in_common_are_refused(cli, adapter, tiny_llama_dir, tmp_path):
    other = make_adapter(tmp_path / "mlp", tiny_llama_dir, targets=["up_proj"])
    result = cli("analyze", adapter, other)
    assert result.exit_code == 2
    assert "Cannot compare mine with mlp: they have no module in common" in result.stderr
    assert "mlp adapts model.layers.0.mlp.up_proj, model.layers.1.mlp.up_proj." in result.stderr


def test_widths_that_differ_are_refused(cli, adapter, other):
    file = other / "adapter_model.safetensors"
    tensors = {
        key: tensor if "lora_B" in key else torch.cat([tensor, tensor], dim=1)
        for key, tensor in load_file(file).items()
    }
    save_file(tensors, file, metadata={"format": "pt"})
    result = cli("analyze", adapter, other)
    assert result.exit_code == 2
    assert "Cannot compare adapters of different bases: ΔW of model.layers.0" in result.stderr
    assert "(32, 32) in mine and (32, 64) in theirs" in result.stderr


def test_three_are_too_many_and_base_contradicts_no_base(cli, adapter):
    result = cli("analyze", adapter, adapter, adapter)
    assert result.exit_code == 2 and "expected one, or two to compare" in result.stderr
    result = cli("analyze", adapter, "--base", "x", "--no-base")
    assert result.exit_code == 2 and "Give one of them" in result.stderr


def test_where_a_report_goes(tmp_path, monkeypatch):
    run = tmp_path / "run"
    for folder in ("adapter", "checkpoint-7"):
        (run / folder).mkdir(parents=True)
    (run / "recipe.yaml").touch()
    (tmp_path / "alone").mkdir()
    assert default_output([run / "adapter"]) == run / "analysis"
    assert default_output([run / "checkpoint-7"]) == run / "checkpoint-7-analysis"
    assert default_output([run / "adapter", tmp_path / "alone"]) == run / "analysis-alone"
    assert default_output([tmp_path / "alone"]) == tmp_path / "alone-analysis"
    assert str(default_output(["someone/adapter"])) == "adapter-analysis"
    monkeypatch.chdir(tmp_path / "alone")
    assert default_output(["."]) == tmp_path / "alone-analysis"


def test_names_are_short_and_differ(tmp_path):
    run = tmp_path / "run"
    (run / "adapter").mkdir(parents=True)
    (run / "recipe.yaml").touch()
    assert short_names(["run"], [run / "adapter"]) == ["run"]
    assert short_names(["a/x", "b/x"], ["a/x", "b/x"]) == ["a/x", "b/x"]
    assert short_names(["a", "a"], ["a", "a"]) == ["a (1)", "a (2)"]
    assert len(short_names(["n" * 90], ["n" * 90])[0]) < 32

"""`lorakit inspect --quantization`: the table, the picture and what has no base."""

from dataclasses import replace

from fixtures.printed import flat
from lorakit import Adapter
from lorakit.cli.commands.inspect_quantization import _kind_rows, _scheme_rows
from lorakit.quantization.error import LayerError


def test_quantization_shows_every_scheme_and_draws_it(cli, tiny_llama_dir, tmp_path):
    plot = tmp_path / "new" / "error.png"
    result = cli("inspect", tiny_llama_dir, "--quantization", "--plot", plot)
    assert result.exit_code == 0, result.stderr
    words = flat(result.stdout)
    assert "14 linear layers" in words and "bits per parameter" in words
    for scheme in ("nf4, double", "nf4", "fp4, double", "fp4", "int8"):
        assert f"{scheme} " in words
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert f"{plot} (" in words


def test_quantization_of_an_adapter_is_that_of_its_base(cli, lm_run, tiny_llama_dir):
    result = cli("inspect", lm_run, "--quantization", "--modules")
    assert result.exit_code == 0, result.stderr
    assert f"each linear layer of {tiny_llama_dir}" in result.stdout
    assert "layers.1.mlp.down_proj" in result.stdout


def test_quantization_of_nothing_is_explained(cli, tmp_path):
    result = cli("inspect", tmp_path / "none", "--quantization")
    assert result.exit_code == 2 and "which does not exist" in result.stderr
    result = cli("inspect", tmp_path, "--quantization")
    assert result.exit_code == 2 and "No adapter in" in result.stderr


def test_an_adapter_that_names_no_base_is_refused(cli, lm_run, tmp_path):
    replace(Adapter.load(lm_run / "adapter"), base_model=None).save(tmp_path)
    result = cli("inspect", tmp_path, "--quantization")
    assert result.exit_code == 2
    assert "got null in base_model_name_or_path. Name the model." in result.stderr


def test_rows_are_weighted_by_size_and_the_worst_is_named():
    errors = [
        LayerError("a.q", 8, 4, "nf4", 0.1, 0.5, 4.0),
        LayerError("b.q", 8, 4, "nf4", 0.3, 0.25, 4.0),
        LayerError("b.q", 8, 4, "int8", 0.01, 0.125, 8.0),
        LayerError("a.v", 2, 4, "nf4", 0.2, 0.75, 10.0),
    ]
    _, rows = _scheme_rows(errors, ["nf4", "int8"])
    assert [row[:4] for row in rows] == [
        ("nf4", f"{(64 * 4 + 8 * 10) / 72:.2f}", "0.2000", "0.3000"),
        ("int8", "8.00", "0.0100", "0.0100"),
    ]
    assert [row[4:] for row in rows] == [("0.75", "b.q"), ("0.125", "b.q")]
    headings, rows = _kind_rows(errors, ["nf4", "int8"])
    assert headings[-2:] == ("nf4", "int8")
    assert rows == [("q", 2, 4, 8, "0.2000", "0.0100"), ("v", 1, 4, 2, "0.2000", "-")]

"""`lorakit merge`."""

import ast

import pytest


def test_it_writes_an_ordinary_checkpoint_and_says_how_exact_it_is(cli, cls_run, tmp_path):
    output = tmp_path / "merged"
    result = cli("merge", cls_run, output, "--dtype", "bfloat16")
    assert result.exit_code == 0, result.stderr
    words = " ".join(result.stdout.split())
    assert "merged layers 12" in words
    assert "dtype bfloat16" in words
    assert "largest deviation of a logit" in words
    assert "largest rounding of a weight" in words
    assert f"{output}/model.safetensors (" in words
    line = result.stdout.splitlines()[-1].strip()
    call = ast.parse(line, mode="eval").body
    assert isinstance(call, ast.Call)
    import transformers

    name, path = ast.unparse(call.func).split(".")[1], ast.literal_eval(call.args[0])
    assert getattr(transformers, name).from_pretrained(path).config.id2label[1] == "positive"


def test_a_directory_with_files_is_not_overwritten(cli, cls_run, tmp_path):
    (tmp_path / "mine").touch()
    result = cli("merge", cls_run, tmp_path)
    assert result.exit_code == 2
    assert f"Error: Cannot write the merged model to {tmp_path}" in result.stderr
    assert list(tmp_path.iterdir()) == [tmp_path / "mine"]


@pytest.mark.parametrize("dtype", ["int8", "fp16"])
def test_an_unknown_dtype_is_refused(cli, cls_run, tmp_path, dtype):
    result = cli("merge", cls_run, tmp_path / "merged", "--dtype", dtype)
    assert result.exit_code == 2
    assert "'float32', 'bfloat16', 'float16'" in result.stderr
    assert not (tmp_path / "merged").exists()


def test_a_quantized_base_is_made_dense_and_that_is_said(cli, quantized_run, tmp_path):
    result = cli("merge", quantized_run, tmp_path / "merged")
    assert result.exit_code == 0, result.stderr
    assert "quantized base dequantized" in " ".join(result.stdout.split())
    assert "quantization_config" not in (tmp_path / "merged/config.json").read_text()


def test_quantizing_again_is_asked_for_and_its_cost_is_reported(cli, quantized_run, tmp_path):
    result = cli("merge", quantized_run, tmp_path / "small", "--requantize")
    assert result.exit_code == 0, result.stderr
    assert "quantized again" in result.stdout and "largest deviation" in result.stdout
    result = cli("merge", quantized_run, tmp_path / "other", "--requantize", "--dtype", "float32")
    assert result.exit_code == 2 and "Choose one" in result.stderr


def test_the_base_as_it_is_saved_can_be_used(cli, quantized_run, tmp_path):
    result = cli("merge", quantized_run, tmp_path / "merged", "--unquantized")
    assert result.exit_code == 0 and "quantized base" not in result.stdout
    result = cli("generate", quantized_run, "a good film", "--unquantized")
    assert result.exit_code == 0, result.stderr

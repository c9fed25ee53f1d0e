"""`lorakit extract`: from two checkpoints to an adapter."""

import pytest
import torch

from lorakit import Adapter


@pytest.fixture(scope="module")
def tuned_dir(tiny_llama_dir, tmp_path_factory):
    """The tiny model with every weight moved a little."""
    import shutil

    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("tuned") / "model"
    shutil.copytree(tiny_llama_dir, folder)
    model = AutoModelForCausalLM.from_pretrained(tiny_llama_dir)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(folder)
    return folder


def test_it_writes_an_adapter_and_tells_what_it_keeps(cli, tiny_llama_dir, tuned_dir, tmp_path):
    output = tmp_path / "adapter"
    settings = ("lora.r=4", "lora.target_modules=[q_proj,v_proj]")
    result = cli("extract", tiny_llama_dir, tuned_dir, output, *settings)
    assert result.exit_code == 0, result.stderr
    adapter = Adapter.load(output)
    assert len(adapter.factors) == 4 and adapter.base_model == tiny_llama_dir
    words = " ".join(result.stdout.split())
    assert "q_proj 2 4 " in words and "v_proj 2 4 " in words
    from lorakit.adapters import extract

    expected = extract(tiny_llama_dir, tuned_dir, adapter.config)
    assert f"kept of ‖ΔW‖² in total {100 * expected.share:.3g}%" in words
    assert "left out 17 tensors" in words  # 21 in all
    assert (output / "tokenizer.json").is_file() and not (output / "model.safetensors").exists()
    assert "lora.r=8" in result.stdout.splitlines()[-1]
    assert f"lorakit inspect {output}" in result.stdout


def test_one_line_for_every_module(cli, tiny_llama_dir, tuned_dir, tmp_path):
    words = ("extract", tiny_llama_dir, tuned_dir, tmp_path / "a", "lora.r=16", "--modules")
    result = cli(*words)
    assert result.exit_code == 0, result.stderr
    rows = [line for line in result.stdout.splitlines() if line.startswith("model.layers.")]
    assert len(rows) == 14


def test_bad_input_is_refused_and_nothing_is_written(cli, tiny_llama_dir, tuned_dir, tmp_path):
    output = tmp_path / "adapter"
    for words, said in (
        ((tiny_llama_dir, tuned_dir, output, "lora.rank=4"), "Did you mean 'r'?"),
        ((tiny_llama_dir, tuned_dir, output, "r=4"), "expected settings of the lora section"),
        ((tiny_llama_dir, tuned_dir, output, "lora.r"), "expected key=value"),
        ((tiny_llama_dir, tuned_dir, output, "lora.r=33"), "33"),
        (
            (tiny_llama_dir, tuned_dir, output, "lora.target_modules=[q_porj]"),
            "Did you mean 'q_proj'?",
        ),
        ((tmp_path / "no", tuned_dir, output), "There is no checkpoint directory"),
        ((tiny_llama_dir, tuned_dir, tuned_dir), "it holds files already"),
    ):
        result = cli("extract", *words)
        assert result.exit_code == 2 and said in result.stderr, result.stderr
        assert not output.exists()

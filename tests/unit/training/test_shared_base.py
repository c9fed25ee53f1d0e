"""A base mapped from a file: the bits of the loaded one, and one copy for all processes."""

from pathlib import Path

import pytest
import torch

from forked import Program
from lorakit.models.pretrained import fresh_modules
from lorakit.training import Recipe
from lorakit.training.shared_base import load_shared_base
from lorakit.training.tasks import task_for


def recipe_of(model, data, task="SEQ_CLS", seed=42, **values):
    return Recipe.check(
        {
            "model": model,
            "task": task,
            "data": {"train": data},
            "training": {"seed": seed, "use_cpu": True},
            "output": "unused",
            **values,
        },
        "the recipe",
    )


def both_ways(recipe, directory, labels):
    task = task_for(recipe.task)
    tokenizer = task.load_tokenizer(recipe)
    mapped = load_shared_base(directory, recipe, task, tokenizer, labels)
    return mapped, task.load_base(recipe, tokenizer, labels)


def require_same_bits(mapped, loaded):
    ours, theirs = mapped.state_dict(), loaded.state_dict()
    assert list(ours) == list(theirs)
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype, name
        assert torch.equal(ours[name], tensor), name
    assert fresh_modules(mapped) == fresh_modules(loaded)
    ours, theirs = dict(mapped.named_buffers()), dict(loaded.named_buffers())
    assert ours.keys() == theirs.keys()
    for name, buffer in theirs.items():
        assert torch.equal(ours[name], buffer), name


@pytest.mark.parametrize("kind", ["distilbert", "bert", "llama"])
def test_a_head_initialized_with_another_seed_is_that_of_the_loaded_base(
    kind, request, cls_csv, tmp_path
):
    model = request.getfixturevalue(f"tiny_{kind}_dir")
    first, _ = both_ways(recipe_of(model, cls_csv), tmp_path, ("a", "b", "c"))
    other, loaded = both_ways(recipe_of(model, cls_csv, seed=7), tmp_path, ("a", "b", "c"))
    require_same_bits(other, loaded)
    assert len(list(tmp_path.glob("*.pt"))) == 1, "the seed of the head makes no other file"
    head = fresh_modules(first)[-1]
    assert not torch.equal(first.get_submodule(head).weight, other.get_submodule(head).weight)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bloom"])
def test_a_language_model_is_mapped_with_tied_weights_tied(kind, request, text_jsonl, tmp_path):
    recipe = recipe_of(request.getfixturevalue(f"tiny_{kind}_dir"), text_jsonl, "CAUSAL_LM")
    mapped, loaded = both_ways(recipe, tmp_path, None)
    require_same_bits(mapped, loaded)
    for model in (mapped, loaded):
        tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
        assert tied == (kind != "llama")
    ids = torch.arange(8)[None]
    assert torch.equal(mapped.eval()(ids).logits, loaded.eval()(ids).logits)


@pytest.mark.parametrize("settings", [{"bits": 4}, {"bits": 8}])
def test_a_quantized_base_is_mapped_as_it_was_quantized(
    settings, tiny_llama_dir, text_jsonl, tmp_path
):
    how = settings | {"compute_dtype": "float32"}
    recipe = recipe_of(tiny_llama_dir, text_jsonl, "CAUSAL_LM", quantization=how)
    mapped, loaded = both_ways(recipe, tmp_path, None)
    ids = torch.arange(8)[None]
    assert torch.equal(mapped.eval()(ids).logits, loaded.eval()(ids).logits)


def test_what_changes_the_weights_changes_the_file(tiny_llama_dir, text_jsonl, tmp_path):
    for changes in ({}, {"dtype": "bfloat16"}, {"quantization": {"compute_dtype": "float32"}}):
        recipe = recipe_of(tiny_llama_dir, text_jsonl, "CAUSAL_LM", **changes)
        mapped, _ = both_ways(recipe, tmp_path, None)
        if changes.get("dtype"):
            assert mapped.dtype == torch.bfloat16
    assert len(list(tmp_path.glob("*.pt"))) == 3


def test_writing_to_a_mapped_base_leaves_the_file_as_it_was(tiny_llama_dir, text_jsonl, tmp_path):
    recipe = recipe_of(tiny_llama_dir, text_jsonl, "CAUSAL_LM")
    mapped, loaded = both_ways(recipe, tmp_path, None)
    with torch.no_grad():
        for parameter in mapped.parameters():
            parameter.zero_()
    again, _ = both_ways(recipe, tmp_path, None)
    require_same_bits(again, loaded)


# Both have read every page before either looks, and look before either ends.
_READER = """
import os, re, sys, time, torch
from pathlib import Path
import transformers.models.llama.modeling_llama

base, meeting = sys.argv[1], Path(sys.argv[2])

def meet(moment):
    (meeting / f"{moment}-{os.getpid()}").touch()
    while len(list(meeting.glob(f"{moment}-*"))) < 2:
        time.sleep(0.01)

model = torch.load(base, mmap=True, weights_only=False)["model"]
total = sum(float(p.sum()) for p in model.parameters())  # reads every page
size = sum(p.numel() * p.element_size() for p in model.parameters())
meet("read")
mapped = False
private = shared = 0
for line in open("/proc/self/smaps"):
    if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
        mapped = line.rstrip().endswith(base)
    elif mapped and line.startswith(("Private_Clean", "Private_Dirty")):
        private += int(line.split()[1])
    elif mapped and line.startswith(("Shared_Clean", "Shared_Dirty")):
        shared += int(line.split()[1])
print(size, private * 1024, shared * 1024)
meet("looked")
"""


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="the kernel does not tell")
def test_two_processes_hold_one_copy(tmp_path, text_jsonl):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=512, hidden_size=512, intermediate_size=1024, num_hidden_layers=2
    )
    torch.save({"model": LlamaForCausalLM(config)}, tmp_path / "base.pt")
    given = (_READER, tmp_path / "base.pt", tmp_path)
    with Program(*given) as first, Program(*given) as second:
        for reader in (first, second):
            done = reader.finished()
            assert done.returncode == 0, done.stderr
            size, private, shared = map(int, done.stdout.split())
            assert private < 0.02 * size
            assert shared > 0.98 * size


@pytest.mark.parametrize("writable", ["the directory", "the file"])
def test_a_file_that_others_can_write_is_not_opened(tiny_llama_dir, cls_csv, tmp_path, writable):
    recipe, directory = recipe_of(tiny_llama_dir, cls_csv), tmp_path / "base"
    both_ways(recipe, directory, ("a", "b", "c"))
    (saved,) = directory.glob("*.pt")
    saved.write_bytes(b"anything at all")
    (directory if writable == "the directory" else saved).chmod(0o777)
    require_same_bits(*both_ways(recipe, directory, ("a", "b", "c")))
    assert saved.read_bytes() == b"anything at all"

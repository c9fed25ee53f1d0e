import json
import shutil
from functools import partial

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoTokenizer

from lorakit import load_adapter
from lorakit.errors import AdapterMismatchError, MissingFileError
from lorakit.training import Recipe, evaluate, train
from lorakit.training.setup import prepare


def test_evaluate_gives_the_metrics_of_the_end_again(done):
    result, _ = done
    again = evaluate(result.run_dir)
    assert again == pytest.approx(result.metrics, rel=1e-6)
    assert evaluate(result.adapter_path) == again
    assert evaluate(result.run_dir / "checkpoint-5")["eval_loss"] > again["eval_loss"]


def test_a_runs_loss_is_that_of_its_files_from_the_models_own_logits(done):
    result, _ = done
    recipe = Recipe.load(result.run_dir / "recipe.yaml")
    attach = partial(load_adapter, path=result.adapter_path)
    setup = prepare(recipe, lambda name, payload: None, attach=attach)
    nll_sum, counted = 0.0, 0
    for row in setup.encoded.validation:
        with torch.no_grad():
            logits = setup.model(torch.tensor([row["input_ids"]])).logits[0, :-1]
        targets = torch.tensor(row["labels"][1:])
        nll_sum += F.cross_entropy(logits, targets, reduction="sum").item()
        counted += int((targets != -100).sum())
    assert result.metrics["eval_loss"] == pytest.approx(nll_sum / counted, rel=1e-5)


def test_evaluate_on_other_rows_and_without_the_adapter(done, text_jsonl):
    result, _ = done
    base = evaluate(result.run_dir, use_base=True)
    assert base["eval_loss"] > result.metrics["eval_loss"]
    other = result.run_dir.parent / "other.jsonl"
    other.write_text('{"prompt": "what colour is the sky?", "completion": " blue"}\n' * 3)
    assert evaluate(result.run_dir, data=str(other))["eval_loss"] != result.metrics["eval_loss"]


def test_evaluate_takes_the_tokenizer_that_was_saved_with_the_adapter(done, tmp_path, monkeypatch):
    result, _ = done
    run = shutil.copytree(result.run_dir, tmp_path / "run")
    asked = []
    whole = AutoTokenizer.from_pretrained
    monkeypatch.setattr(
        AutoTokenizer,
        "from_pretrained",
        lambda name, **options: asked.append(name) or whole(name, **options),
    )
    assert evaluate(run) == pytest.approx(result.metrics, rel=1e-6)
    assert asked == [str(run / "adapter")]
    (run / "adapter" / "tokenizer_config.json").unlink()
    asked.clear()
    evaluate(run)
    assert asked == [Recipe.load(run / "recipe.yaml").model]


def test_evaluate_needs_an_adapter_and_a_recipe(done, tmp_path):
    with pytest.raises(MissingFileError, match=r"No adapter at .*: it has no adapter_config\.json"):
        evaluate(tmp_path)
    lonely = tmp_path / "adapter"
    lonely.mkdir()
    (lonely / "adapter_config.json").write_text("{}")
    with pytest.raises(MissingFileError, match=r"there is no recipe\.yaml beside it"):
        evaluate(lonely)


def test_evaluate_needs_the_weights_of_the_training(done, tmp_path):
    result, _ = done
    run = tmp_path / "run"
    shutil.copytree(result.run_dir, run)
    file = run / "adapter" / "lorakit.json"
    settings = json.loads(file.read_text())
    settings["lineage"]["base_digest"] = "0" * 64
    file.write_text(json.dumps(settings))
    with pytest.raises(AdapterMismatchError, match="other weights than in training"):
        evaluate(run)


def test_a_trained_output_layer_is_evaluated_on_a_half_precision_base(recipe):
    lora = {"r": 2, "target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}
    result = train(recipe(dtype="bfloat16", lora=lora, training={"max_steps": 2}))
    assert evaluate(result.run_dir) == pytest.approx(result.metrics, rel=1e-6)

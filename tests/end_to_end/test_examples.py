"""Every recipe and script under examples/ runs, on tiny stand-in models and local rows."""

import json
from pathlib import Path

import pytest
import yaml

from fixtures.data import write_jsonl
from forked import run

EXAMPLES = Path(__file__).parents[2] / "examples"
RECIPES = sorted((EXAMPLES / "recipes").glob("*.yaml"))
LOCAL_STEPS = ["training.max_steps=2", "training.use_cpu=true"]


@pytest.fixture
def stand_ins(tmp_path, request):
    """For each recipe: (model directory, rows with the columns the recipe names)."""

    def make(stem: str) -> tuple[str, str]:
        path = tmp_path / f"{stem}.jsonl"
        if stem == "label-emotions-distilbert":
            rows = [{"text": f"the film was {w}", "labels": [w]} for w in ["good", "bad"] * 8]
            return request.getfixturevalue("tiny_distilbert_dir"), write_jsonl(path, rows)
        if stem == "score-similarity-distilbert":
            pair = {"sentence1": "the cat", "sentence2": "the dog"}
            rows = [{**pair, "score": score} for score in [0.5, 1.5] * 8]
            return request.getfixturevalue("tiny_distilbert_dir"), write_jsonl(path, rows)
        if stem.endswith("-distilbert"):
            rows = [{"text": f"the film was {w}", "label": w} for w in ["good", "bad"] * 8]
            return request.getfixturevalue("tiny_distilbert_dir"), write_jsonl(path, rows)
        if stem == "answer-questions-bloom":
            rows = [{"prompt": "what colour is the sky?", "completion": " blue"}] * 16
            return request.getfixturevalue("tiny_bloom_dir"), write_jsonl(path, rows)
        if stem in ("chat-llama", "chat-llama-4bit", "stream-chats-llama"):
            turns = [{"role": "user", "content": "tell me"}, {"role": "assistant", "content": "no"}]
            return request.getfixturevalue("tiny_llama_dir"), write_jsonl(
                path, [{"messages": turns}] * 16
            )
        if stem.endswith("-smollm"):
            said = {
                name: [{"role": "user", "content": "tell me"}, {"role": "assistant", "content": a}]
                for name, a in (("chosen", "no"), ("rejected", "the cat saw a dog"))
            }
            rows = [said] * 16
            if stem == "learn-from-votes-smollm":
                rows = [
                    {"prompt": chat[:1], "completion": chat[1:], "label": name == "chosen"}
                    for name, chat in said.items()
                ] * 8
            return request.getfixturevalue("tiny_llama_dir"), write_jsonl(path, rows)
        if stem == "summarize-t5":
            rows = [{"article": "the cat saw a dog", "highlights": "cat saw dog"}] * 16
            return request.getfixturevalue("tiny_t5_dir"), write_jsonl(path, rows)
        rows = [{"tokens": ["Anna", "lives"], "ner_tags": ["B-PER", "O"]}] * 16
        return request.getfixturevalue("tiny_bert_dir"), write_jsonl(path, rows)

    return make


@pytest.mark.parametrize("recipe_path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_trains_on_its_stand_in(recipe_path, stand_ins, tmp_path):
    from lorakit.training import Recipe, train

    model, data = stand_ins(recipe_path.stem)
    written = yaml.safe_load(recipe_path.read_text())
    overrides = [
        f"model={model}",
        f"data.train={data}",
        "data.max_length=32",
        f"output={tmp_path / 'run'}",
        *LOCAL_STEPS,
    ]
    overrides += ["data.max_validation_rows=4"] if "streaming" in written["data"] else []
    overrides += ["data.subset=null"] if "subset" in written["data"] else []
    overrides += ["lora.r=8"] if written["lora"]["r"] > 16 else []
    if "start_from" in written:
        first = EXAMPLES / "recipes" / "classify-reviews-distilbert.yaml"
        train(Recipe.load(first, [*overrides, f"output={tmp_path / 'first'}"]))
        overrides.append(f"start_from={tmp_path / 'first'}")
    result = train(Recipe.load(recipe_path, overrides))

    assert result.steps == 2
    saved = json.loads((tmp_path / "run/adapter/adapter_config.json").read_text())
    assert saved["lora_alpha"] == written["lora"].get("lora_alpha", 64)
    assert saved["task_type"] == written["task"]


def _run(script: str, *arguments: object) -> str:
    path = str(EXAMPLES / "scripts" / script)
    code = f"import runpy; runpy.run_path({path!r}, run_name='__main__')"
    done = run(code, *arguments)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_plain_pytorch_loop(tiny_llama_dir, tmp_path):
    text = tmp_path / "lines.txt"
    text.write_text("the grass is green\n" * 4)
    printed = _run("plain_pytorch_loop.py", tiny_llama_dir, str(text), str(tmp_path / "adapter"))
    assert "trainable params" in printed and "last loss" in printed
    assert (tmp_path / "adapter/adapter_model.safetensors").is_file()


def test_transformers_trainer(tiny_distilbert_dir, cls_csv, tmp_path):
    printed = _run(
        "transformers_trainer.py", tiny_distilbert_dir, cls_csv, str(tmp_path / "adapter")
    )
    assert "Trained in full and saved: pre_classifier, classifier" in printed
    assert (tmp_path / "adapter/adapter_model.safetensors").is_file()


def test_trl_sft(tiny_llama_dir, prompt_jsonl, tmp_path):
    printed = _run("trl_sft.py", tiny_llama_dir, prompt_jsonl, str(tmp_path / "adapter"))
    assert "modules adapted" in printed
    assert (tmp_path / "adapter/adapter_model.safetensors").is_file()


def test_prepare_squad(tmp_path):
    row = {"context": "Grass is green.", "question": "What colour?", "answers": {"text": ["green"]}}
    source = write_jsonl(tmp_path / "squad-like.jsonl", [row])
    _run("prepare_squad.py", str(tmp_path / "out/squad.jsonl"), source)
    written = json.loads((tmp_path / "out/squad.jsonl").read_text())
    assert written["completion"] == " green"
    assert written["prompt"].endswith("Question: What colour?\nAnswer:")


def test_prefer_shorter(tmp_path):
    printed = _run("prefer_shorter.py", tmp_path / "shorter", 96, 50)
    assert "96 pairs to learn from, 50 held out" in printed
    assert "held-out accuracy: 0.000 before, " in printed

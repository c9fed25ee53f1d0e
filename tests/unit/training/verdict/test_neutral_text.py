from fixtures.tasks import make_recipe
from lorakit.training.tasks import task_for
from lorakit.training.verdict.neutral_text import encode_neutral_text, neutral_passages


def test_the_passages_are_many_short_and_different():
    passages = neutral_passages()
    assert len(passages) == len(set(passages)) >= 30
    assert all(80 < len(passage) < 600 and passage == passage.strip() for passage in passages)


def test_they_are_encoded_within_the_models_limit(tiny_llama_dir, prompt_jsonl):
    recipe = make_recipe("CAUSAL_LM", tiny_llama_dir, prompt_jsonl)
    task = task_for(recipe.task)
    tokenizer = task.load_tokenizer(recipe)
    model = task.load_base(recipe, tokenizer, None)
    model.config.max_position_embeddings = 16
    made = encode_neutral_text(model, tokenizer)
    assert len(made) == len(neutral_passages())
    assert all(1 < len(row["input_ids"]) <= 16 for row in made)
    assert made["labels"][:] == made["input_ids"][:]

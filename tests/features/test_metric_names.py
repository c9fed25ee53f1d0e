"""A task names the metrics that its evaluation returns, so that a wrong name is refused early."""

import pytest

from lorakit.training.evaluation_metrics import is_speed

TEXTS = ["a good film", "a bad story", "the great cat", "the awful dog"]
EXAMPLES = {
    "SEQ_CLS": [{"text": TEXTS[i % 4], "label": ["up", "down"][i % 2]} for i in range(16)],
    "TOKEN_CLS": [{"tokens": TEXTS[i % 4].split(), "tags": ["O", "O", "B-PER"]} for i in range(16)],
    "CAUSAL_LM": [{"prompt": "it was", "completion": " good"} for _ in range(16)],
    "SEQ_2_SEQ_LM": [{"source": TEXTS[i % 4], "target": "good"} for i in range(16)],
}
MODELS = {
    "SEQ_CLS": "tiny_distilbert_dir",
    "TOKEN_CLS": "tiny_bert_dir",
    "CAUSAL_LM": "tiny_llama_dir",
    "SEQ_2_SEQ_LM": "tiny_t5_dir",
}


@pytest.mark.parametrize("task", EXAMPLES)
def test_the_names_are_those_of_an_evaluation(prepare, request, jsonl, tmp_path, task):
    made = prepare(task, request.getfixturevalue(MODELS[task]), jsonl(EXAMPLES[task]))
    trainer = made.trainer(tmp_path)
    measured = {
        name.removeprefix("eval_")
        for name in trainer.evaluate()
        if name.startswith("eval_") and not is_speed(name)
    }
    assert set(made.task.metric_names(made.labels, vars(trainer.args))) == measured

"""What `blame` is asked: about an answer, as an example of the run, or about its mistakes."""

from __future__ import annotations

from typing import Any

import torch
from datasets import Dataset

from lorakit.config import NOT_COUNTED, TaskType
from lorakit.data import Splits
from lorakit.data.text_formats import find_layout
from lorakit.errors import ConfigError, did_you_mean, first_few
from lorakit.training.influence.example_gradients import ExampleLosses
from lorakit.training.setup import Setup

_WORST_SHARE = 0.1
"""Share of the validation examples that count as mistakes where there are no classes."""


def encode_answer(
    setup: Setup, answer: str, prompt: str | None, label: str | None
) -> tuple[Dataset, str]:
    """Return one encoded example with an answer, as training would encode it, and a sentence.

    Args:
        setup: The run; its model predicts the label of a text if none is given.
        answer: The answer; for SEQ_CLS the text whose label is in question.
        prompt: What it answers, where examples have prompts.
        label: Label of a text.

    Raises:
        ConfigError: The task or layout needs a prompt or a label, or has none.
    """
    row = _row(setup, answer, prompt, label)
    about = "Looking at the answer."
    if setup.recipe.task == TaskType.SEQ_CLS:
        predicted = ", which the adapter predicts" if label is None else ""
        about = f"Looking at the label '{row[setup.recipe.data.label]}'{predicted}."
    splits = Splits(Dataset.from_list([row]), None)
    encoded = setup.task.encode(splits, setup)
    return encoded.train, about


def _row(setup: Setup, answer: str, prompt: str | None, label: str | None) -> dict[str, Any]:
    data, task = setup.recipe.data, setup.recipe.task
    if label is not None and task != TaskType.SEQ_CLS:
        raise ConfigError(
            f"--label is for texts that are classified: got it for a run of {task}, expected "
            "SEQ_CLS. Leave it out."
        )
    if task == TaskType.TOKEN_CLS:
        raise ConfigError(
            "An answer cannot be named for a run of TOKEN_CLS: got a text, expected --mistakes. "
            "Ask for the mistakes on the validation examples."
        )
    if task == TaskType.SEQ_CLS:
        if prompt is not None:
            raise ConfigError(
                "A run of SEQ_CLS is asked about a text: got --prompt too, expected the text "
                "alone. Leave --prompt out."
            )
        if data.text_pair is not None:
            raise ConfigError(
                "A run on pairs of texts cannot be asked about one text: got data.text_pair="
                f"{data.text_pair}, expected --mistakes. Ask about the mistakes."
            )
        return {data.text: answer, data.label: _label(setup, answer, label)}
    if task == TaskType.SEQ_2_SEQ_LM:
        return {data.source: _require_prompt(prompt, "its input text"), data.target: answer}
    layout = find_layout(setup.splits.train, data, setup.splits.training_place(data))
    if layout.name == "text":
        return {layout.data.text: (prompt or "") + answer}
    question = _require_prompt(prompt, f"what it answers, because the examples are '{layout.name}'")
    if layout.name == "alpaca":
        return {"instruction": question, "input": "", "output": answer}
    turns = [{"role": "user", "content": question}], [{"role": "assistant", "content": answer}]
    if layout.name == "messages":
        return {layout.data.messages: [*turns[0], *turns[1]]}
    if layout.conversation:
        return {layout.data.prompt: turns[0], layout.data.completion: turns[1]}
    return {layout.data.prompt: question, layout.data.completion: answer}


def _require_prompt(prompt: str | None, what: str) -> str:
    if prompt is None:
        raise ConfigError(
            f"The answer needs a prompt: got no --prompt, expected {what}. Give it with --prompt."
        )
    return prompt


@torch.no_grad()
def _label(setup: Setup, text: str, label: str | None) -> str:
    """Return the label of a text: the given one, or what the adapter predicts."""
    labels = setup.labels or ()
    if label is not None:
        if label not in labels:
            raise ConfigError(
                f"No such label in --label: got '{label}', expected {first_few(labels)}."
                f"{did_you_mean(label, labels)} Name one of them."
            )
        return label
    model = setup.model.eval()
    inputs = setup.tokenizer(text, truncation=True, return_tensors="pt").to(model.device)
    return labels[int(model(**inputs).logits[0].argmax())]


def mistakes(setup: Setup, losses: ExampleLosses) -> tuple[Dataset, str]:
    """Return the validation examples that the adapter gets wrong, and a sentence about them.

    Without classes they are the tenth with the largest loss; without a mistake they are all.

    Raises:
        ConfigError: The run has no validation examples.
    """
    validation = setup.encoded.validation
    if validation is None:
        raise ConfigError(
            "There are no mistakes to look at: got a run without validation examples, expected "
            "some. Ask about an answer, or train with data.validation."
        )
    usable: Any = losses.usable(validation)
    has_classes = setup.labels is not None
    found = [losses.evaluate(example) for example in usable]
    if has_classes:
        wrong = [n for n, (one, labels) in enumerate(found) if _is_wrong(one.outputs, labels)]
        if not wrong:
            return validation, (
                f"Looking at the loss of all {len(validation):,} validation examples, because none "
                "is a mistake."
            )
        said = f"the {len(wrong):,} mistakes among {len(validation):,} validation examples"
    else:
        means = torch.stack([one.loss.cpu() / max(one.labels, 1) for one, _ in found])
        count = max(1, round(_WORST_SHARE * len(means)))
        wrong = sorted(means.topk(count).indices.tolist())
        said = f"the {count:,} of {len(validation):,} validation examples with the largest loss"
    return validation.select(wrong), f"Looking at {said}."


def _is_wrong(outputs: Any, labels: torch.Tensor) -> bool:
    """Return whether a prediction that counts differs from its label."""
    counts = labels != NOT_COUNTED
    predicted = outputs.logits.argmax(-1)
    return bool((predicted[counts] != labels[counts]).any())

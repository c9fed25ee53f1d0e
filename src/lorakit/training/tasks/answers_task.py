"""What the tasks share that compare two answers to a prompt."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lorakit.data.answers import AnswerCollator
from lorakit.data.preferences import PARTS, VOTES_KEY
from lorakit.data.tokenize_examples import readable
from lorakit.data.tokenizers import pad_id
from lorakit.models.pretrained import resolve_max_length
from lorakit.recipes.objective_section import ObjectiveConfig
from lorakit.training.tasks.base import Encoded, Loaded, PreviewExample, Task
from lorakit.training.tasks.encoded_answers import encode_answers

if TYPE_CHECKING:
    from datasets import Dataset

    from lorakit.data import Splits


class AnswersTask(Task):
    """Learn from an `objective:` section; its examples are two answers to one prompt each."""

    counts_prompts: bool = False
    """Whether the tokens of prompts count too."""

    def __init__(self, config: ObjectiveConfig):
        """Create the task of an `objective:` section."""
        self.config = config

    def encode(self, splits: Splits, loaded: Loaded) -> Encoded:
        """Tokenize each prompt with its two answers, and mark the tokens that count."""
        given = loaded.recipe.data.max_length
        max_length = resolve_max_length(given, loaded.model, loaded.tokenizer)
        encoded, layout = encode_answers(
            splits, loaded, self.config, max_length, counts_prompts=self.counts_prompts
        )
        settings = self.settings(
            loaded,
            max_length=max_length,
            format="messages" if layout.is_conversation else "prompt_completion",
            **self.answer_settings(encoded.train, loaded),
        )
        notes = (*self.fresh_notes(loaded), *encoded.notes)
        return replace(encoded, notes=notes, settings=settings)

    def answer_settings(self, examples: Dataset, loaded: Loaded) -> dict[str, Any]:
        """Return further settings that inference needs, for the encoded training examples."""
        return {}

    def preview_example(self, example: dict[str, Any], loaded: Loaded) -> PreviewExample:
        """Return an example as it is batched; a pair has its rejected answer beside."""
        tokenizer = loaded.tokenizer
        batch = AnswerCollator(pad_id(tokenizer))([example])
        rows = []
        for row in range(2):
            mask = batch["attention_mask"][0, row].bool()
            counted = (batch["labels"][0, row][mask] >= 0).tolist()
            counted[0] = False  # nothing predicts the first token
            rows.append((readable(tokenizer, batch["input_ids"][0, row][mask]), counted))
        (chosen, marks), (rejected, others) = rows
        if VOTES_KEY in example:
            vote = "good" if example[VOTES_KEY] else "bad"
            return PreviewExample(
                chosen, marks, f"{vote}, {sum(marks)} of {len(marks)} tokens count"
            )
        prompt = example[PARTS][0]
        note = f"{prompt} of the prompt, {sum(marks)} and {sum(others)} that count"
        beside = PreviewExample(rejected[prompt:], others[prompt:], "rejected")
        return PreviewExample(chosen, marks, note, prompt, beside)

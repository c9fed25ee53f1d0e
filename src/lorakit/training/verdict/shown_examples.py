"""Which examples a report shows: the most confident mistakes, and random answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from lorakit.adapters.inference_settings import InferenceSettings
from lorakit.analysis.example_scores import ExampleScores
from lorakit.config import NOT_COUNTED, TaskType
from lorakit.data.preferences import PARTS, VOTES_KEY
from lorakit.data.reading.positions import Place, describe_examples
from lorakit.data.tokenizers import decode
from lorakit.inference.generation import continue_tokens
from lorakit.inference.loaded import LoadedModel
from lorakit.models.pretrained import model_limit
from lorakit.training.predicted import Predicted
from lorakit.training.setup import Setup
from lorakit.training.tasks.base import seed_of

if TYPE_CHECKING:
    from lorakit.training.trainers.adapter_trainer import AdapterTrainerMixin

SHOWN = 10
"""Number of examples of each kind."""
_MOST_NEW_TOKENS = 48
_MOST_PROMPT_TOKENS = 32
"""Number of tokens of a plain text that are given to the model, which continues it."""


Kind = Literal["confident mistakes", "wrong labels", "unlikely answers", "errors"]


@dataclass(frozen=True)
class ShownExample:
    """One example, and what the models say."""

    place: str
    """Its number and line in the data, in words; "" if unknown."""
    given: str
    expected: str
    adapter: str | None
    """Answer with the adapter; None if none was generated."""
    base: str | None
    """Answer of the base alone; None if it was not asked."""
    confidence: float | None
    """Probability of the adapter's answer."""


@dataclass(frozen=True)
class ShownExamples:
    """The examples that a report shows."""

    mistakes: tuple[ShownExample, ...] = ()
    """The examples that the adapter does worst on, the worst first."""
    random: tuple[ShownExample, ...] = ()
    kind: Kind = "confident mistakes"
    """What `mistakes` are: wrong answers or sets of labels by their probability, expected answers
    that a language model finds unlikely, or numbers by their error."""


def examples_of_predictions(
    predicted: Predicted, columns: Mapping[str, Sequence[Any]], place: Place, seed: int
) -> ShownExamples:
    """Choose examples of a table of predictions.

    Args:
        predicted: The predictions.
        columns: The table: inputs, expected answers, "prediction" and what follows.
        place: Place of the examples in the data.
        seed: Seed of the random examples.
    """
    names = list(columns)
    answer = names[names.index("prediction") - 1]
    inputs = names[: names.index(answer)]

    def show(index: int) -> ShownExample:
        base = columns.get("base_prediction")
        probability = columns.get("probability")
        given = [_text(columns[name][index]) for name in inputs]
        return ShownExample(
            describe_examples([predicted.numbers[index]], place),
            " / ".join(given),
            _text(columns[answer][index]),
            _text(columns["prediction"][index]),
            None if base is None else _text(base[index]),
            None if probability is None else _mean(probability[index]),
        )

    count = len(predicted.numbers)
    chosen = np.random.default_rng(seed).permutation(count)[:SHOWN].tolist()
    random = tuple(show(index) for index in sorted(chosen))
    if "predicted_words" in columns:
        return ShownExamples(_wrong_words(predicted, columns, answer, place), random)
    if "probability" in columns:
        table = zip(columns["prediction"], columns[answer], columns["probability"], strict=True)
        sure = [_certainty_of_mistake(*row) for row in table]
        wrong = sorted((-one, index) for index, one in enumerate(sure) if one is not None)
        worst = [replace(show(index), confidence=-one) for one, index in wrong[:SHOWN]]
        has_sets = count > 0 and isinstance(columns["probability"][0], Mapping)
        return ShownExamples(
            tuple(worst), random, "wrong labels" if has_sets else "confident mistakes"
        )
    if count and not isinstance(columns["prediction"][0], str):
        largest = _largest_errors(columns[answer], columns["prediction"])
        return ShownExamples(tuple(map(show, largest)), random, "errors")
    return ShownExamples((), random)


def _largest_errors(expected: Sequence[Any], predicted: Sequence[Any]) -> list[int]:
    """Return the examples with the largest errors; each of several numbers in its own scale."""
    errors = np.abs(np.array(expected, np.float64) - np.array(predicted, np.float64))
    errors = errors.reshape(len(errors), -1)
    sizes = errors.mean(0)
    relative = (errors / np.where(sizes > 0, sizes, 1.0)).max(1)
    return np.argsort(-relative, kind="stable")[:SHOWN].tolist()


def _certainty_of_mistake(predicted: Any, expected: Any, probability: Any) -> float | None:
    """Return how sure the adapter is of a wrong answer, None if the answer is right.

    Where a text has several labels, it is that of the label it is most wrong about.
    """
    if not isinstance(probability, Mapping):
        return None if predicted == expected else float(probability)
    wrong = set(predicted) ^ set(expected)
    sure: list[float] = [
        share if label in predicted else 1 - share
        for label, share in probability.items()
        if label in wrong
    ]
    return max(sure, default=None)


def _wrong_words(
    predicted: Predicted, columns: Mapping[str, Sequence[Any]], answer: str, place: Place
) -> tuple[ShownExample, ...]:
    """Return the words whose wrong tags are the most confident."""
    found: list[tuple[float, int, int]] = []
    for index, tags in enumerate(columns["prediction"]):
        expected = columns[answer][index][: len(tags)]  # the others are cut off
        if columns["predicted_words"][index] != columns[_words_of(columns)][index][: len(tags)]:
            continue  # a word inside has no token, so positions differ
        for word, (tag, right) in enumerate(zip(tags, expected, strict=True)):
            if tag != right:
                found.append((-columns["probability"][index][word], index, word))
    shown = []
    for negative, index, word in sorted(found)[:SHOWN]:
        words = columns["predicted_words"][index]
        base = columns.get("base_prediction")
        shown.append(
            ShownExample(
                describe_examples([predicted.numbers[index]], place),
                f"{words[word]}, in: {' '.join(words)}",
                columns[answer][index][word],
                columns["prediction"][index][word],
                None if base is None else base[index][word],
                -negative,
            )
        )
    return tuple(shown)


def _words_of(columns: Mapping[str, Sequence[Any]]) -> str:
    return next(iter(columns))  # the words are the only input


def examples_of_losses(setup: Setup, losses: ExampleScores | None) -> tuple[ShownExample, ...]:
    """Return the validation examples whose expected answers are the least likely for the adapter.

    Args:
        setup: Examples and tokenizer.
        losses: The adapter's loss of each validation example; other scores show no examples.
    """
    examples = _validation_rows(setup)
    if losses is None or losses.metric != "perplexity":
        return ()
    if examples is None or len(losses) != len(examples):
        return ()
    means = losses.points / np.maximum(losses.weights, 1)
    found: dict[tuple[str, str], ShownExample] = {}
    for index in np.argsort(-means, kind="stable").tolist():
        prompt = _decode(setup, _prompt_of(examples[index], setup))
        counted = [label for label in examples[index]["labels"] if label != NOT_COUNTED]
        answer = _decode(setup, counted)
        share = float(np.exp(-means[index]))
        found.setdefault((prompt, answer), ShownExample("", prompt, answer, None, None, share))
        if len(found) == SHOWN:
            break
    return tuple(found.values())


def generate_answers(setup: Setup, trainer: AdapterTrainerMixin) -> tuple[ShownExample, ...]:
    """Let base and adapter answer random validation examples of CAUSAL_LM; none if sharded.

    Plain texts are continued from their first tokens.
    """
    examples = _validation_rows(setup)
    if setup.task.task_type is not TaskType.CAUSAL_LM or examples is None:
        return ()
    if trainer.is_fsdp_enabled:
        return ()
    order = np.random.default_rng(seed_of(setup.recipe)).permutation(len(examples))
    chosen = [examples[index] for index in sorted(order[:SHOWN].tolist())]
    prompts = [_prompt_of(example, setup) for example in chosen]
    answers = [
        _answer_of(example, len(prompt)) for example, prompt in zip(chosen, prompts, strict=True)
    ]
    new_tokens = min(_MOST_NEW_TOKENS, max(map(len, answers)) or _MOST_NEW_TOKENS)
    limit = model_limit(setup.model)
    if limit is not None:
        new_tokens = max(1, min(new_tokens, limit - 1))
        prompts = [prompt[-(limit - new_tokens) :] for prompt in prompts]
    was_training = setup.model.training
    setup.model.eval()
    try:
        texts = [
            continue_tokens(_to_loaded_model(setup), prompts, new_tokens, use_base, use_cache=True)
            for use_base in (False, True)
        ]
    finally:
        setup.model.train(was_training)
    return tuple(
        ShownExample("", _decode(setup, prompt), _decode(setup, answer), adapter, base, None)
        for prompt, answer, adapter, base in zip(prompts, answers, *texts, strict=True)
    )


def _validation_rows(setup: Setup) -> Any:
    """Return the encoded validation examples; None without any, and if they are packed."""
    examples = setup.encoded.validation
    if examples is None or "seq_lengths" in examples.column_names or not len(examples):
        return None
    strategy = setup.recipe.training.get("eval_packing")
    packs = setup.recipe.training.get("packing") if strategy is None else strategy
    return None if packs else examples


def _prompt_of(example: Mapping[str, Any], setup: Setup) -> list[int]:
    """Return the tokens before the first that counts; of plain text the first tokens."""
    ids, labels = list(example["input_ids"]), example["labels"]
    if PARTS in example:
        return ids[: example[PARTS][0]]
    if setup.task.task_type is not TaskType.CAUSAL_LM:
        return ids
    first = next((at for at, label in enumerate(labels) if label != NOT_COUNTED), len(ids))
    return ids[:first] if first > 1 else ids[: max(1, min(_MOST_PROMPT_TOKENS, len(ids) // 2))]


def _answer_of(example: Mapping[str, Any], prompt_tokens: int) -> list[int]:
    """Return the tokens of the expected answer: the chosen one of two, or one with a good vote."""
    ids = list(example["input_ids"])
    if PARTS not in example:
        return ids[prompt_tokens:]
    is_good = example.get(VOTES_KEY, 1)
    return ids[prompt_tokens : prompt_tokens + example[PARTS][1]] if is_good else []


def _decode(setup: Setup, ids: Sequence[int]) -> str:
    return decode(setup.tokenizer, list(ids), skip_special_tokens=True)


def _to_loaded_model(setup: Setup) -> LoadedModel:
    """Return the model of a run as inference takes it."""
    settings = InferenceSettings(task_type=setup.task.task_type, **setup.encoded.settings)
    return LoadedModel(
        *(setup.model, setup.tokenizer, setup.task.task_type, setup.labels, settings),
        setup.recipe.model,
    )


def _text(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _mean(value: Any) -> float | None:
    """Return a probability; None for lists, one for each word."""
    return value if isinstance(value, float) else None

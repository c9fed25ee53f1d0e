"""Predicting a file: classes against transformers' pipeline, texts against one prompt at a time.

Both sides have the same adapted model in memory. A prediction of a file reads and writes it; the
pipeline gets the texts in a list, in the batch size that is fastest here for a sample of them.
Texts have 4 to 60 English words of the neutral passages that come with lorakit. Every round has
other texts, so that all rounds together predict all of them once; its seconds are those of its
share. For prompts each round has as many as the setting says: one at a time they cost the same
however many there are, and ten thousand would take an hour. All sides give the same predictions.
"""

import csv
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

import lorakit
from benchmarks.goal import Goal
from benchmarks.measure import TIME, Sample, Stopwatch, interleaved
from benchmarks.models import Shape, save_with_tokenizer, shape_named
from benchmarks.options import Options, options_of, options_parser
from benchmarks.parity import ParityError
from benchmarks.results import Row
from benchmarks.step import row_fields
from benchmarks.variants import add_random_adapter
from lorakit.adapters.inference_settings import InferenceSettings
from lorakit.inference import LoadedRun, generate_text, load_run, predict_file
from lorakit.inference.file_predictions import PredictionSettings
from lorakit.quickstart.model_files import base_model_path
from lorakit.training.verdict.judge import neutral_passages

PREDICT = "predict"
PIPELINE = "pipeline, best batch size"
LINE_BY_LINE = "generate, line by line"
CLASSES, TEXTS = "classify", "generate"
"""What is measured."""
LABELS = ("business", "science", "sports", "world")
SHAPE = "quickstart"
"""The model that comes with the package."""
TEXT_COUNT, PROMPT_COUNT = 10_000, 32
NEW_TOKENS = 32
_BATCHES = (1, 2, 4, 8, 16, 32)
_SAMPLE_TEXTS = 200
"""Number of texts that the pipeline's batch size is chosen by."""
_WORDS = (4, 60)


QUICKSTART = replace(shape_named("llama-4m"), name=SHAPE)
"""The shape of that model."""
_TASKS = ("SEQ_CLS", "CAUSAL_LM")


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Measure and append the rows; return them."""
    parser = options_parser("predict", __doc__ or "")
    parser.add_argument("--texts", type=int, help=f"texts to classify, {TEXT_COUNT:,} by default")
    parser.add_argument("--prompts", type=int, help=f"prompts, {PROMPT_COUNT} by default")
    found = parser.parse_args(arguments)
    options = options_of(parser, found)
    texts = found.texts or (8 if options.quick else TEXT_COUNT)
    prompts = found.prompts or (2 if options.quick else PROMPT_COUNT)
    rows = []
    for shape in options.shapes or (QUICKSTART,):
        print(shape.name, flush=True)
        rows += measure(options, shape, options.dtype or torch.float32, texts, prompts)
    return rows


def measure(
    options: Options, shape: Shape, dtype: torch.dtype, texts: int, prompts: int
) -> list[Row]:
    """Measure one shape."""
    r = options.r or 8
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        base = base_model_path()
        if shape is not QUICKSTART:
            base = folder / "base"
            save_with_tokenizer(shape, base, dtype)
        common = row_fields("predict", shape, dtype, 0.0, r)
        common["unit"] = "s"
        runs = {task: make_run(folder, base, shape, task, r, options.device) for task in _TASKS}
        made = _classes(options, runs["SEQ_CLS"], folder, make_texts(texts), common)
        # Each side generates once before the first round that counts.
        given = make_texts(prompts * (options.rounds + 1), seed=1)
        made += _texts(options, runs["CAUSAL_LM"], folder, given, prompts, common)
    return options.keep(made)


def texts_setting(texts: int) -> str:
    """Return what rows call a number of texts, of which each round predicts another share.

    >>> texts_setting(10_000)
    '10,000 texts, a share in each round'
    """
    return f"{texts:,} texts, a share in each round"


def prompts_setting(prompts: int) -> str:
    """Return what rows call a number of prompts."""
    return f"{prompts} prompts, {NEW_TOKENS} new tokens"


GOALS = tuple(
    Goal(
        what,
        {
            "benchmark": "predict",
            "measure": measure,
            "shape": SHAPE,
            "setting": setting,
            "variant": PREDICT,
            "ratio_to": reference,
            "dtype": "float32",
            "dropout": 0.0,
            "r": 8,
        },
        must,
    )
    for what, measure, setting, reference, must in (
        (
            "classifying a file / the pipeline at its best batch size",
            CLASSES,
            texts_setting(TEXT_COUNT),
            PIPELINE,
            1.00,
        ),
        (
            "generating for a file / one prompt at a time",
            TEXTS,
            prompts_setting(PROMPT_COUNT),
            LINE_BY_LINE,
            0.33,
        ),
    )
)


def make_texts(count: int, seed: int = 0) -> list[str]:
    """Return texts of words of the neutral passages, whose lengths are spread over a scale."""
    # Others are many tokens each for this tokenizer.
    words = [word for word in " ".join(neutral_passages()).split() if word.isascii()]
    generator = torch.Generator().manual_seed(seed)
    shares = torch.rand(count, generator=generator)
    fewest, most = _WORDS
    lengths = (fewest * (most / fewest) ** shares).round().long().tolist()
    begins = torch.randint(0, len(words) - most, (count,), generator=generator).tolist()
    return [" ".join(words[at : at + n]) for at, n in zip(begins, lengths, strict=True)]


def make_run(folder: Path, base: Path, shape: Shape, task: str, r: int, device: str) -> LoadedRun:
    """Return a random adapter on a base, loaded as a user loads one."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    is_classes = task == "SEQ_CLS"
    auto: Any = AutoModelForSequenceClassification if is_classes else AutoModelForCausalLM
    labels = {"num_labels": len(LABELS)} if is_classes else {}
    torch.manual_seed(1)
    model = auto.from_pretrained(base, **labels)
    add_random_adapter(model, shape, r=r)
    adapter = folder / task
    lorakit.save_adapter(model, adapter)
    settings = InferenceSettings(
        task_type=lorakit.TaskType(task), labels=LABELS if is_classes else None, max_length=256
    )
    settings.save(adapter)
    return load_run(adapter, str(base), device=device)


def _classes(
    options: Options, run: LoadedRun, folder: Path, texts: list[str], common: dict[str, Any]
) -> list[Row]:
    from transformers import pipeline

    pipe: Any = pipeline(
        "text-classification",
        model=run.loaded.model,
        tokenizer=run.loaded.tokenizer,
        truncation=True,
        max_length=run.loaded.max_length,
    )

    def piped(given: list[str], size: int) -> list[str]:
        return [one["label"] for one in pipe(given, batch_size=size)]

    sample = texts[:_SAMPLE_TEXTS]
    sizes = _BATCHES[1:2] if options.quick else _BATCHES
    tried = {str(size): _sample(lambda size=size: piped(sample, size)) for size in sizes}
    seconds = interleaved(tried, rounds=2, warmup=1, device=options.device).by_variant()
    best = min(sizes, key=lambda size: min(seconds[str(size)]))
    print(f"  the pipeline is fastest in batches of {best}", flush=True)
    found = {PREDICT: _predict_file(run, folder, sample), PIPELINE: piped(sample, best)}
    _require_same(found, share=0.99)
    shares = [texts[at :: options.rounds] for at in range(options.rounds)]
    works = {
        PREDICT: lambda given: _predict_file(run, folder, given),
        PIPELINE: lambda given: piped(given, best),
    }
    samples = {name: _sample_of_each(work, shares) for name, work in works.items()}
    values = options.timed(samples, warmup=0).by_variant()
    common = common | {"setting": texts_setting(len(texts))}
    return options.compared(values, (PIPELINE,), measure=CLASSES, **common)


def _texts(
    options: Options,
    run: LoadedRun,
    folder: Path,
    prompts: list[str],
    each: int,
    common: dict[str, Any],
) -> list[Row]:
    def one_by_one(given: list[str]) -> list[str]:
        return [
            generate_text(run.loaded, [prompt], max_new_tokens=NEW_TOKENS)[0] for prompt in given
        ]

    shares = [prompts[at : at + each] for at in range(0, len(prompts), each)]
    works: dict[str, Callable[[list[str]], list[str]]] = {
        PREDICT: lambda given: _predict_file(run, folder, given),
        LINE_BY_LINE: one_by_one,
    }
    # Rounding may choose another of two tokens that are equally likely, and what follows differs.
    _require_same({name: work(shares[0]) for name, work in works.items()}, share=0.75)
    samples = {name: _sample_of_each(work, shares[1:]) for name, work in works.items()}
    values = options.timed(samples, warmup=0).by_variant()
    common = common | {"setting": prompts_setting(each)}
    return options.compared(values, (LINE_BY_LINE,), measure=TEXTS, **common)


def _predict_file(run: LoadedRun, folder: Path, texts: list[str]) -> list[str]:
    """Predict a csv file with texts, and return its new column."""
    source, output = folder / "texts.csv", folder / "texts.predictions.csv"
    with source.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["text"], *([text] for text in texts)])
    predict_file(run.loaded, source, output, PredictionSettings(max_new_tokens=NEW_TOKENS))
    with output.open(encoding="utf-8", newline="") as file:
        found = [row["prediction"] for row in csv.DictReader(file)]
    output.unlink()
    return found


def _sample_of_each(work: Callable[[list[str]], object], shares: Sequence[list[str]]) -> Sample:
    """Return a sample that works on the next share in each round."""
    left = iter(shares)

    def sample(watch: Stopwatch) -> None:
        given = next(left)
        watch.start()
        work(given)
        watch.lap(TIME)

    return sample


def _sample(work: Callable[[], object]) -> Sample:
    def sample(watch: Stopwatch) -> None:
        watch.start()
        work()
        watch.lap(TIME)

    return sample


def _require_same(found: dict[str, list[str]], share: float) -> None:
    expected = found[PREDICT]
    for name, predictions in found.items():
        same = sum(one == other for one, other in zip(expected, predictions, strict=True))
        if same < share * len(expected):
            raise ParityError(
                f"'{name}' predicts otherwise: {same} of {len(expected)} predictions are the same."
            )


if __name__ == "__main__":
    main()

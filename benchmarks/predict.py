"""Predicting a file: classes against transformers' pipeline, texts against one prompt at a time.

Both sides have the same adapted model in memory. A prediction of a file reads and writes it; the
pipeline gets the texts in a list, in the batch size that is fastest here. Texts have 4 to 120 words
of the neutral passages that come with lorakit. All sides give the same predictions.
"""

import csv
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

import lorakit
from benchmarks.goal import Goal
from benchmarks.measure import TIME, Sample, Stopwatch
from benchmarks.models import Shape, save_with_tokenizer
from benchmarks.options import Options, options_of, options_parser
from benchmarks.parity import ParityError
from benchmarks.results import Row
from benchmarks.step import row_fields
from benchmarks.variants import add_random_adapter
from lorakit.adapters.inference_settings import InferenceSettings
from lorakit.inference import LoadedRun, generate_text, load_run, predict_file
from lorakit.inference.file_predictions import PredictionSettings
from lorakit.training.verdict.judge import neutral_passages

PREDICT = "predict"
PIPELINE = "pipeline, best batch size"
LINE_BY_LINE = "generate, line by line"
CLASSES, TEXTS = "classify", "generate"
"""What is measured."""
LABELS = ("business", "science", "sports", "world")
SHAPE = "llama-4m"
TEXT_COUNT, PROMPT_COUNT = 400, 64
NEW_TOKENS = 32
_BATCHES = (1, 8, 32, 128)
_WORDS = (4, 120)
_LONGEST_PROMPT = 60
"""Words of the longest prompt, which leaves the model room to answer."""


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Measure and append the rows; return them."""
    parser = options_parser("predict", __doc__ or "")
    parser.add_argument("--texts", type=int, help=f"texts to classify, {TEXT_COUNT:,} by default")
    parser.add_argument("--prompts", type=int, help=f"prompts, {PROMPT_COUNT} by default")
    found = parser.parse_args(arguments)
    options = options_of(parser, found)
    texts = found.texts or (24 if options.quick else TEXT_COUNT)
    prompts = found.prompts or (4 if options.quick else PROMPT_COUNT)
    rows = []
    for shape in options.shapes_or(cpu=SHAPE):
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
        save_with_tokenizer(shape, folder / "base", dtype)
        common = row_fields("predict", shape, dtype, 0.0, r)
        common["unit"] = "s"
        made = _classes(options, shape, folder, make_texts(texts), common)
        given = make_texts(prompts, most=_LONGEST_PROMPT)
        made += _texts(options, shape, folder, given, common)
    return options.keep(made)


def texts_setting(texts: int) -> str:
    """Return what rows call a number of texts.

    >>> texts_setting(400)
    '400 texts'
    """
    return f"{texts} texts"


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


def make_texts(count: int, seed: int = 0, most: int = _WORDS[1]) -> list[str]:
    """Return texts of words of the neutral passages, whose lengths are spread over a scale."""
    words = " ".join(neutral_passages()).split()
    generator = torch.Generator().manual_seed(seed)
    shares = torch.rand(count, generator=generator)
    lengths = (_WORDS[0] * (most / _WORDS[0]) ** shares).round().long().tolist()
    begins = torch.randint(0, len(words) - most, (count,), generator=generator).tolist()
    return [" ".join(words[at : at + n]) for at, n in zip(begins, lengths, strict=True)]


def make_run(folder: Path, shape: Shape, task: str, r: int, device: str) -> LoadedRun:
    """Return a random adapter on the base in a folder, loaded as a user loads one."""
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    is_classes = task == "SEQ_CLS"
    auto: Any = AutoModelForSequenceClassification if is_classes else AutoModelForCausalLM
    labels = {"num_labels": len(LABELS)} if is_classes else {}
    torch.manual_seed(1)
    model = auto.from_pretrained(folder / "base", **labels)
    add_random_adapter(model, shape, r=r)
    adapter = folder / task
    lorakit.save_adapter(model, adapter)
    settings = InferenceSettings(
        task_type=lorakit.TaskType(task), labels=LABELS if is_classes else None, max_length=256
    )
    settings.save(adapter)
    return load_run(adapter, str(folder / "base"), device=device)


def _classes(
    options: Options, shape: Shape, folder: Path, texts: list[str], common: dict[str, Any]
) -> list[Row]:
    from transformers import pipeline

    run = make_run(folder, shape, "SEQ_CLS", common["r"], options.device)
    tokenizer: Any = run.loaded.tokenizer
    pipe: Any = pipeline(
        "text-classification",
        model=run.loaded.model,
        tokenizer=tokenizer,
        truncation=True,
        max_length=run.loaded.max_length,
    )

    def piped(size: int) -> list[str]:
        return [one["label"] for one in pipe(texts, batch_size=size)]

    batches = _BATCHES[1:2] if options.quick else _BATCHES
    works: dict[str, Callable[[], list[str]]] = {PREDICT: _file_prediction(run, folder, texts)}
    works |= {f"pipeline, batch {size}": lambda size=size: piped(size) for size in batches}
    _require_same({name: work() for name, work in works.items()}, share=0.999)
    timed = options.timed({name: _sample(work) for name, work in works.items()}, warmup=0)
    values = timed.by_variant()
    best = min((name for name in values if name != PREDICT), key=lambda name: median(values[name]))
    print(f"  the pipeline is fastest as '{best}'", flush=True)
    values[PIPELINE] = values[best]
    common = common | {"setting": texts_setting(len(texts))}
    return options.compared(values, (PIPELINE,), measure=CLASSES, **common)


def _texts(
    options: Options, shape: Shape, folder: Path, prompts: list[str], common: dict[str, Any]
) -> list[Row]:
    run = make_run(folder, shape, "CAUSAL_LM", common["r"], options.device)

    def one_by_one() -> list[str]:
        return [
            generate_text(run.loaded, [prompt], max_new_tokens=NEW_TOKENS)[0] for prompt in prompts
        ]

    works: dict[str, Callable[[], list[str]]] = {
        PREDICT: _file_prediction(run, folder, prompts),
        LINE_BY_LINE: one_by_one,
    }
    # Rounding may choose another of two tokens that are equally likely, and what follows differs.
    _require_same({name: work() for name, work in works.items()}, share=0.9)
    values = options.timed({n: _sample(work) for n, work in works.items()}, warmup=0).by_variant()
    common = common | {"setting": prompts_setting(len(prompts))}
    return options.compared(values, (LINE_BY_LINE,), measure=TEXTS, **common)


def _file_prediction(run: LoadedRun, folder: Path, texts: list[str]) -> Callable[[], list[str]]:
    """Return what predicts a csv file with the texts, and returns its new column."""
    source, output = folder / "texts.csv", folder / "texts.predictions.csv"
    settings = PredictionSettings(max_new_tokens=NEW_TOKENS)
    with source.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["text"], *([text] for text in texts)])

    def work() -> list[str]:
        predict_file(run.loaded, source, output, settings)
        with output.open(encoding="utf-8", newline="") as file:
            found = [row["prediction"] for row in csv.DictReader(file)]
        output.unlink()
        return found

    return work


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

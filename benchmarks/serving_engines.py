"""Ways to answer many requests of mixed lengths, in tokens per second.

One padded batch of `generate`, transformers' continuous batching, and the engine of
`lorakit serve`, the latter without adapters, with one, and with a different one for each request.
Before timing, all ways without adapters must give the same tokens.

    python -m benchmarks.serving_engines --shape llama-69m --requests 8 32 --rounds 3
"""

import argparse
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from benchmarks.load_generator import NEW_TOKENS, mixed_work
from benchmarks.models import Shape, build_model, shape_named, shared_copy
from benchmarks.variants import add_random_adapter

_BLOCKS = 512
_BATCH_TOKENS = 512
_MOST_ROWS = 32

Request = tuple[list[int], int]
"""A prompt, and the number of new tokens."""
Answers = list[list[int]]
Way = Callable[[Sequence[Request]], Answers]


def main(arguments: Sequence[str] | None = None) -> dict[tuple[int, str], float]:
    """Print tokens per second; return the medians by number of requests and way."""
    parser = argparse.ArgumentParser("python -m benchmarks.serving_engines", description=__doc__)
    parser.add_argument("--shape", default="llama-69m", help="llama-69m, llama-69m:2, ...")
    parser.add_argument("--requests", nargs="+", type=int, default=[8, 32])
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args(arguments)
    shape = shape_named(given.shape)
    medians = {}
    for count in given.requests:
        for name, values in tokens_per_second(shape, count, given.rounds).items():
            medians[count, name] = statistics.median(values)
            listed = ", ".join(f"{value:.0f}" for value in values)
            print(f"{shape.name}, {count} requests, {name}: {medians[count, name]:.0f} ({listed})")
    return medians


def tokens_per_second(shape: Shape, count: int, rounds: int) -> dict[str, list[float]]:
    """Return the tokens per second of each round of each way."""
    base: Any = build_model(shape).eval()
    adapted: Any = shared_copy(base)
    for number in range(count):
        add_random_adapter(adapted, shape, name=f"a{number}", r=8, seed=number)
    requests = mixed_requests(shape, count)
    new_tokens = sum(wanted for _, wanted in requests)
    names = [f"a{number}" for number in range(count)]
    values: dict[str, list[float]] = {}
    with (
        torch.no_grad(),
        engine_of(base) as plain,
        engine_of(adapted) as serving,
    ):
        ways: dict[str, Way] = {
            "one padded batch": lambda given: padded(base, given),
            "continuous batching of transformers": lambda given: continuous(base, given),
            "engine": lambda given: engine_answers(plain, given, [None] * count),
            "engine, one adapter": lambda given: engine_answers(serving, given, ["a0"] * count),
            "engine, an adapter each": lambda given: engine_answers(serving, given, names),
        }
        answers = {name: way(requests) for name, way in ways.items()}
        for name in list(ways)[1:3]:
            if answers[name] != answers["one padded batch"]:
                raise RuntimeError(f"Other tokens than of one padded batch: {name}.")
        for _ in range(rounds):
            for name, way in ways.items():
                began = time.perf_counter()
                way(requests)
                seconds = time.perf_counter() - began
                values.setdefault(name, []).append(new_tokens / seconds)
    return values


def mixed_requests(shape: Shape, count: int) -> list[Request]:
    """Return seeded prompts with lengths of both lists."""
    return [(list(one.prompt), one.new_tokens) for one in mixed_work(shape.vocabulary, count)]


def padded(model: Any, requests: Sequence[Request]) -> Answers:
    """Answer in one batch, which runs until the longest answer ends."""
    length = max(len(prompt) for prompt, _ in requests)
    ids = torch.tensor([[0] * (length - len(prompt)) + prompt for prompt, _ in requests])
    starts = torch.tensor([[length - len(prompt)] for prompt, _ in requests])
    made = model.generate(
        input_ids=ids,
        attention_mask=(torch.arange(length) >= starts).long(),
        max_new_tokens=max(wanted for _, wanted in requests),
        do_sample=False,
        use_cache=True,
        eos_token_id=None,
        pad_token_id=0,
    )
    rows = made[:, length:].tolist()
    return [row[:wanted] for row, (_, wanted) in zip(rows, requests, strict=True)]


def continuous(model: Any, requests: Sequence[Request]) -> Answers:
    """Answer by transformers' continuous batching, which has no adapters."""
    from transformers import ContinuousBatchingConfig, GenerationConfig

    manager = model.init_continuous_batching(
        generation_config=GenerationConfig(
            do_sample=False, eos_token_id=-1, pad_token_id=0, max_new_tokens=max(NEW_TOKENS)
        ),
        continuous_batching_config=ContinuousBatchingConfig(
            allow_block_sharing=False, num_blocks=_BLOCKS, max_batch_tokens=_BATCH_TOKENS
        ),
    )
    manager.start()
    ids = [manager.add_request(prompt, max_new_tokens=wanted) for prompt, wanted in requests]
    made: dict[str, list[int]] = {}
    while len(made) < len(ids):
        result = manager.get_result(timeout=1)
        if result is not None and result.is_finished():
            made[result.request_id] = result.generated_tokens
    manager.stop(block=True)
    return [made[each] for each in ids]


@contextmanager
def engine_of(model: Any, hooks: Any = None, rows: int = _MOST_ROWS) -> Iterator[Any]:
    """Run an engine without a prefix cache, so that rounds do the same work."""
    from lorakit.serving.engine import Engine, EngineSettings

    settings = EngineSettings(max_batch_rows=rows, prefix_cache_bytes=0)
    engine = Engine(model, tokenizer_of_any_model(), settings, hooks)
    engine.start()
    try:
        yield engine
    finally:
        engine.stop(finish_running=False)


def tokenizer_of_any_model() -> Any:
    """Return a tokenizer for models with random weights, whose texts nobody reads."""
    from transformers import AutoTokenizer

    from lorakit.quickstart.model_files import base_model_path

    return AutoTokenizer.from_pretrained(base_model_path())


def engine_answers(
    engine: Any, requests: Sequence[Request], names: Sequence[str | None]
) -> Answers:
    """Submit all requests at once to an engine that runs; wait for the answers."""
    from lorakit.serving.requests import GenerationRequest, NewText, Sampling

    answers: Answers = [[] for _ in requests]
    ends = [threading.Event() for _ in requests]

    def receiver(number: int) -> Callable[[object], None]:
        def take(event: object) -> None:
            if isinstance(event, NewText):
                answers[number] += event.token_ids
            else:
                ends[number].set()

        return take

    for number, ((prompt, wanted), name) in enumerate(zip(requests, names, strict=True)):
        settings = Sampling(max_tokens=wanted, temperature=0.0)
        request = GenerationRequest(tuple(prompt), name, name or "", settings)
        engine.submit(request, receiver(number))
    for end in ends:
        end.wait()
    return answers


if __name__ == "__main__":
    main()

"""Compare the losses of this commit with those of another, step by step, on tiny runs.

    git worktree add --detach ../before COMMIT
    python -m tools.compare_losses ../before [--only CASE ...] [--steps 50]

Each task and each way of training runs in float32 on the CPU, with the same bases, data and seeds,
in a process for each commit. A row has the losses of the first and the last step, and the largest
relative difference of a step's loss. "nudged" is what rounding alone may do: the other commit
against itself, with a learning rate that is one unit of float32 larger.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

Recipes = Mapping[str, dict[str, Any]]  # by case

ROOT = Path(__file__).parents[1]
STEPS, EXAMPLES, SEED = 50, 96, 0
NUDGE = 1 + 2.0**-23
_QUIET = {"TQDM_DISABLE": "1", "TRANSFORMERS_VERBOSITY": "error"}
_TRAINING: dict[str, Any] = {
    **{"per_device_train_batch_size": 4, "learning_rate": 1e-2, "lr_scheduler_type": "constant"},
    **{"train_sampling_strategy": "random", "logging_steps": 1, "save_strategy": "no"},
    **{"use_cpu": True, "seed": 7},
}
_LORA: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}

TASKS = {"SEQ_CLS": "distilbert", "TOKEN_CLS": "bert", "SEQ_2_SEQ_LM": "t5", "CAUSAL_LM": "llama"}


def _case(task: str, **lora: Any) -> dict[str, Any]:
    return {"task": task, "model": TASKS[task], "lora": lora}


_causal = partial(_case, "CAUSAL_LM")
_GPT2 = {"model": "gpt2"}
_WIDER = {"model": "quickstart", "training": {"learning_rate": 5e-4}}  # it learns faster
_FOUR_BITS = {"quantization": {"bits": 4, "compute_dtype": "float32"}}
_INITIALIZATIONS = ("pissa", "olora", "orthogonal", "eva", "lora_ga")

CASES: dict[str, dict[str, Any]] = {
    **{task: _case(task) for task in TASKS},
    **{
        f"{task}, accumulated": {**_case(task), "training": {"gradient_accumulation_steps": 3}}
        for task in TASKS
    },
    "dropout": _causal(lora_dropout=0.05),
    "GPT-2": {**_causal(), **_GPT2},
    "GPT-2, dropout": {**_causal(lora_dropout=0.05), **_GPT2},
    "rsLoRA": _causal(use_rslora=True),
    "DoRA": _causal(use_dora=True),
    "DoRA, dropout": _causal(use_dora=True, lora_dropout=0.05),
    "DoRA, GPT-2": {**_causal(use_dora=True), **_GPT2},
    "LoRA-FA": _causal(freeze_lora_a=True),
    "LoRA-FA, dropout": _causal(freeze_lora_a=True, lora_dropout=0.05),
    "LoRA+": {**_causal(), "training": {"lora_plus_ratio": 4.0}},
    "all biases": {**_causal(bias="all"), **_GPT2},
    "biases of LoRA's layers": {**_causal(bias="lora_only"), **_GPT2},
    "trained head": _causal(modules_to_save=["lm_head"]),
    "trained tokens": _causal(trainable_token_indices=[5, 6, 7, 40]),
    **{name: _causal(init_lora_weights=name) for name in _INITIALIZATIONS},
    "4 bits": {**_causal(), **_FOUR_BITS},
    "4 bits, dropout": {**_causal(lora_dropout=0.05), **_FOUR_BITS},
    "4 bits, DoRA": {**_causal(use_dora=True), **_FOUR_BITS},
    "4 bits, loftq": {**_causal(init_lora_weights="loftq"), **_FOUR_BITS},
    "checkpointed": {**_causal(), "training": {"gradient_checkpointing": True}},
    "packed": {**_causal(), "training": {"packing": True}, "data": {"max_length": 64}},
    "wider": {**_causal(), **_WIDER},
    "wider, dropout": {**_causal(lora_dropout=0.05), **_WIDER},
    "wider, DoRA": {**_causal(use_dora=True), **_WIDER},
    "wider, 4 bits": {**_causal(), **_WIDER, **_FOUR_BITS},
}


def recipe_of(case: Mapping[str, Any], folder: Path, steps: int = STEPS) -> dict[str, Any]:
    """Return the recipe of a case as a mapping, without `output`."""
    data = {"train": str(folder / f"{case['task']}.jsonl"), "validation_fraction": 0}
    return {
        **case,
        "model": str(folder / case["model"]),
        "dtype": "float32",
        "data": data | case.get("data", {}),
        "lora": _LORA | case.get("lora", {}),
        "training": _TRAINING | {"max_steps": steps} | case.get("training", {}),
    }


def nudged(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe whose learning rate is one unit of float32 larger."""
    training = recipe["training"]
    return {**recipe, "training": training | {"learning_rate": training["learning_rate"] * NUDGE}}


def examples(task: str) -> list[dict[str, Any]]:
    """Return seeded examples of a task, of different lengths."""
    from fixtures.data import WORDS

    draw = random.Random(SEED)
    texts = [draw.choices(WORDS, k=draw.randint(3, 14)) for _ in range(EXAMPLES)]
    if task == "TOKEN_CLS":
        return [{"tokens": text, "tags": ["ab"[len(word) > 3] for word in text]} for text in texts]
    if task == "SEQ_CLS":
        return [{"text": " ".join(text), "label": "abc"[len(text) % 3]} for text in texts]
    given, wanted = ("source", "target") if task == "SEQ_2_SEQ_LM" else ("prompt", "completion")
    return [{given: " ".join(text), wanted: f" {text[0]} {text[-1]}"} for text in texts]


def write_inputs(folder: Path) -> None:
    """Write the bases and the data of all cases."""
    from lorakit.quickstart.model_files import base_model_path
    from tiny_models.saved import save_tiny

    for name in sorted({*TASKS.values(), "gpt2"}):
        save_tiny(name, folder / name)
    (folder / "quickstart").symlink_to(base_model_path())
    for task in TASKS:
        lines = "".join(json.dumps(example) + "\n" for example in examples(task))
        (folder / f"{task}.jsonl").write_text(lines)


def train_recipes(folder: Path) -> None:
    """Train each recipe of a folder with the lorakit that is imported, and write its losses."""
    from lorakit.errors import LorakitError
    from lorakit.recipes.recipe import Recipe
    from lorakit.training import RunDirectory, train

    for path in sorted(folder.glob("*.json")):
        values = json.loads(path.read_text()) | {"output": str(path.with_suffix(""))}
        try:
            result = train(Recipe.check(values, path.stem))
        except LorakitError as error:
            print(f"{path.stem}: {error}", file=sys.stderr)
            continue
        rows = RunDirectory.open(result.run_dir).metrics()
        losses = [row["loss"] for row in rows if row["event"] == "step"]
        path.with_suffix(".losses").write_text(json.dumps(losses))


def losses_of(checkout: Path, recipes: Recipes, folder: Path) -> dict[str, list[float]]:
    """Return the losses of the recipes that a checkout's lorakit takes, from another process."""
    folder.mkdir()
    for name, recipe in recipes.items():
        (folder / f"{name}.json").write_text(json.dumps(recipe))
    environment = os.environ | _QUIET | {"PYTHONPATH": str(checkout.resolve() / "src")}
    command = [sys.executable, __file__, "--train", str(folder)]
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    return {path.stem: json.loads(path.read_text()) for path in folder.glob("*.losses")}


def largest_difference(before: Sequence[float], after: Sequence[float]) -> float:
    """Return the largest relative difference of two runs' losses at a step."""
    return max(abs(b - a) / abs(a) for a, b in zip(before, after, strict=True))


def compare(other: Path, names: Iterable[str], steps: int, folder: Path) -> None:
    """Print a row for each case."""
    write_inputs(folder)
    recipes = {name: recipe_of(CASES[name], folder, steps) for name in names}
    before = losses_of(other, recipes, folder / "before")
    floor = losses_of(other, {n: nudged(r) for n, r in recipes.items()}, folder / "nudged")
    after = losses_of(ROOT, recipes, folder / "after")
    print(f"{'case':<26}{'first':>7}{'last':>7}{'difference':>12}{'nudged':>10}")
    for name in recipes:
        if name not in before or name not in after:
            print(f"{name:<26}{'refused':>26}")
            continue
        losses = f"{before[name][0]:>7.3f}{before[name][-1]:>7.3f}"
        changed, rounded = (largest_difference(before[name], to[name]) for to in (after, floor))
        print(f"{name:<26}{losses}{changed:>12.1e}{rounded:>10.1e}")


def main() -> None:
    """Parse the command line and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("other", type=Path, help="checkout of the other commit")
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES), metavar="CASE")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--train", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.train:
        train_recipes(arguments.other)
        return
    if not (arguments.other / "src" / "lorakit").is_dir():
        parser.error(f"{arguments.other} is not a checkout of lorakit: it has no src/lorakit")
    if arguments.steps < 1:
        parser.error(f"--steps: got {arguments.steps}, expected at least 1")
    sys.path.insert(0, str(ROOT / "tests"))
    with tempfile.TemporaryDirectory() as folder:
        compare(arguments.other, arguments.only, arguments.steps, Path(folder))


if __name__ == "__main__":
    main()

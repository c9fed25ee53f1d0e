"""Measure what an open page of the studio costs a run: pairs of equal runs, with and without it.

    python -m tools.studio_cost [--pairs 8] [--steps 400]

Each pair trains the same recipe twice, one after the other, first without the page and first with
it in turn. The browser runs on this machine, so its part counts too. Stop all other programs first.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from playwright.sync_api import Page, sync_playwright
from tools.studio_screenshots import studio

from lorakit.quickstart.model_files import base_model_path
from lorakit.recipes.recipe import Recipe

EXAMPLES, STARTS_S = 400, 120.0


def main() -> None:
    """Read the arguments, train the pairs and print each and the median."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--chromium", default=shutil.which("chromium"))
    arguments = parser.parse_args()
    if arguments.chromium is None:
        parser.error("there is no Chromium: `make browser` installs it where it can")
    with tempfile.TemporaryDirectory() as folder, opened(Path(folder), arguments.chromium) as page:
        root = Path(folder)
        write_recipe(root, arguments.steps)
        train(root, "warm-up", None)
        ratios = []
        for pair in range(arguments.pairs):
            order = (None, page) if pair % 2 == 0 else (page, None)
            took_s = {looked is not None: train(root, f"run-{pair}", looked) for looked in order}
            ratios.append(took_s[True] / took_s[False])
            print(
                f"pair {pair + 1}: {took_s[False]:.2f} s without, {took_s[True]:.2f} s with the "
                f"page: {ratios[-1] - 1:+.1%}",
                flush=True,
            )
    low, *_, high = statistics.quantiles(ratios, n=10) if len(ratios) > 1 else ratios * 2
    median = statistics.median(ratios)
    print(f"An open page costs {median - 1:+.2%} (p10 {low - 1:+.2%}, p90 {high - 1:+.2%}).")


@contextmanager
def opened(root: Path, chromium: str) -> Iterator[Page]:
    """Start a studio and a browser that it has admitted; print what an idle page costs."""
    with studio(root) as link, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(link)
        page.wait_for_timeout(5_000)
        (process,) = [each for each in psutil.Process().children() if "studio" in each.cmdline()]
        before, began_s = sum(process.cpu_times()[:2]), time.monotonic()
        page.wait_for_timeout(20_000)
        used = (sum(process.cpu_times()[:2]) - before) / (time.monotonic() - began_s)
        print(f"The studio uses {used:.2%} of a core while its list of runs is open.", flush=True)
        yield page
        browser.close()


def write_recipe(root: Path, steps: int) -> None:
    """Write a small data set, and a recipe that trains on it and logs each step."""
    lines = [
        f"ticket {n} about {'a bill' if n % 2 else 'a crash'},{n % 2}" for n in range(EXAMPLES)
    ]
    (root / "tickets.csv").write_text("\n".join(["text,label", *lines]) + "\n", encoding="utf-8")
    values = {
        "model": str(base_model_path()),
        "task": "SEQ_CLS",
        "data": {"train": str(root / "tickets.csv")},
        "training": {"max_steps": steps, "logging_steps": 1, "use_cpu": True},
        "output": str(root / "runs" / "run"),
    }
    recipe = Recipe.check(values, "the recipe")
    (root / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")


def train(root: Path, name: str, page: Page | None) -> float:
    """Train once, while a page follows the run or none does; return the seconds of its steps."""
    output = root / "runs" / f"{name}-{'with' if page else 'without'}"
    words = [sys.executable, "-m", "lorakit", "train", str(root / "recipe.yaml")]
    with subprocess.Popen(
        [*words, f"output={output}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        if page is not None:
            until_s = time.monotonic() + STARTS_S
            while not (output / "recipe.yaml").exists() and time.monotonic() < until_s:
                time.sleep(0.05)
            page.goto(f"{page.url.partition('/run/')[0].rstrip('/')}/run/runs/{output.name}")
        code = process.wait()
    if page is not None:
        page.goto(page.url.partition("/run/")[0])
    if code:
        sys.exit(f"A run failed with exit code {code}; train {root / 'recipe.yaml'} to see why.")
    lines = (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [row for row in map(json.loads, lines) if row.get("event") == "step"]
    return steps[-1]["wall_s"] - steps[0]["wall_s"]


if __name__ == "__main__":
    main()

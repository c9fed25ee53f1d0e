"""Measure what the studio costs and how quick it is: one row for each target of its page.

    python -m tools.studio_cost [--seconds 150] [--window 10] [--only PART ...]

The part "cost" lets a run train all the time while its page is in use, rests since nobody touches
it, and is hidden in turn, and compares the seconds per step of adjacent windows, in the order in
use, hidden, at rest, at rest, hidden, in use. A page at rest looks every ten seconds, so that a
window should be a multiple of these. A hidden page looks at nothing: its rows show that it takes
what a browser without a page takes. Nothing listens to this browser, unlike Playwright's, and its
processes are counted by what they do. On Linux, the seconds that the run's threads wait for a core
are compared, too: they spread less than the clock, which they bound, since a thread that waits
holds up the others. The browser runs on this machine, so its part counts too; with the browser
elsewhere, the share of the studio alone is left. Stop all other programs first. The part "points"
is of a page in use. The part "watch" needs no quiet machine: it writes five steps a second into a
run, and a checkpoint every ten seconds, and counts the processor time of the browser and of the
studio, while the page is in use and while it rests.
"""

import argparse
import compileall
import json
import math
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import psutil
from playwright.sync_api import Browser, Page, sync_playwright
from tools.browser import find_browser
from tools.studio_process import (
    BarePage,
    bare_page,
    browsers,
    cpu_s,
    studio,
    used_s,
    with_bytecode,
    write_checkpoint,
)

import lorakit
from lorakit.quickstart.model_files import base_model_path
from lorakit.recipes.directory_lock import locking_directory
from lorakit.recipes.recipe import Recipe

PARTS = ("start", "paint", "drawing", "points", "idle", "watch", "cost")
EXAMPLES, POINTS, SAMPLES, STARTS = 400, 20_000, 9, 3
STARTS_S, SETTLES_S = 120.0, 1.0
RESTS_S = 32.0
"""After which a page that nobody touches rests; it tells no more until somebody does."""
STATES = {"used": "in use", "resting": "at rest", "hidden": "hidden"}
"""What a page tells the studio, and what the rows call it."""
WATCHED_STEPS, STEP_S = 300, 0.2
CHECKPOINT_STEPS = 50
DRAWS = """(() => {
    let draw;
    window.drawnMs = [];
    const note = (find, began) => {
        const shown = find()?.$el?.getAttribute("aria-label") ?? "";
        if (shown.includes(" points "))
            requestAnimationFrame(() => setTimeout(() => drawnMs.push(performance.now() - began)));
        else setTimeout(() => note(find, began), 5);
    };
    Object.defineProperty(window, "lorakitChart", {
        configurable: true,
        get: () => draw && ((id, find, message) => {
            if (message.lines?.length) note(() => find(id), performance.now());
            draw(id, find, message);
        }),
        set: (given) => { draw = given; },
    });
})()"""
"""Notes how long each chart takes, from the arrival of its points to their picture."""
PAINT = "performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? null"


def main() -> None:
    """Read the arguments, measure, and print a row for each target."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--seconds", type=float, default=150, help="of the run, page used, at rest and hidden"
    )
    parser.add_argument("--window", type=float, default=10, help="seconds in each of these")
    parser.add_argument("--idle", type=float, default=10, help="seconds to look at an idle page")
    parser.add_argument("--watch", type=float, default=30, help="seconds to look at a live page")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, metavar="PART")
    parser.add_argument("--chromium", default=find_browser())
    arguments = parser.parse_args()
    if arguments.chromium is None:
        parser.error("there is no Chromium: `make browser` installs it where it can")
    for package in lorakit.__path__:  # as pip does when it installs a package
        compileall.compile_dir(package, quiet=2)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_run(root / "runs" / "long", POINTS)
        parts = [part for part in arguments.only if part != "cost"]
        if parts:
            measure_parts(parts, root, arguments)
        if "cost" in arguments.only:
            with studio(root) as (link, _, process), bare_page(arguments.chromium) as page:
                cost(page, link, root, process, arguments.seconds, arguments.window)


def measure_parts(parts: Sequence[str], root: Path, arguments: argparse.Namespace) -> None:
    """Measure all parts but the cost, in a browser that Playwright steers."""
    with sync_playwright() as playwright:
        options = ["--no-sandbox", "--disable-gpu"]
        browser = playwright.chromium.launch(executable_path=arguments.chromium, args=options)
        browser.new_page().goto("about:blank")  # what a first page starts is there
        if "start" in parts:
            starts(root, browser)
        with studio(root) as (link, _, process):
            page = browser.new_page()
            page.add_init_script(DRAWS)
            url = link.partition("/access")[0]
            page.goto(link)
            measured = {
                "paint": lambda: paint(page, url),
                "drawing": lambda: drawing(page, f"{url}/run/runs/long"),
                "points": lambda: live_points(page, f"{url}/run/runs/long", root / "runs" / "long"),
                "idle": lambda: idle(page, url, process, arguments.idle),
                "watch": lambda: watch(page, url, root, process, arguments.watch),
            }
            for part, measure in measured.items():
                if part in parts:
                    measure()
        browser.close()


def show(name: str, values: Sequence[float], target: str, unit: str = "s") -> None:
    """Print a row: name, median, lowest and highest value, their number, and the target."""
    scaled = [100 * value if unit == "%" else value for value in values]
    median = statistics.median(scaled)
    spread = f" ({min(scaled):.3g} to {max(scaled):.3g}, n={len(scaled)})" if values[1:] else ""
    print(f"{name:<52} {median:>8.3g} {unit}{spread:<28} target {target}", flush=True)


def starts(root: Path, browser: Browser) -> None:
    """Measure the time from the command to the list of runs, and the processor time of it."""
    found, used = [], []
    for _ in range(STARTS):
        with studio(root) as (link, began_s, process):
            page = browser.new_context().new_page()
            page.goto(link)
            page.get_by_role("link", name="runs/long").wait_for()
            found.append(time.monotonic() - began_s)
            used.append(cpu_s([process]))
            page.context.close()
    show("start to a page that can be used", found, "4 s")
    show("processor time of the studio until then", used, "none")


def paint(page: Page, url: str) -> None:
    """Measure the first paint of the list of runs and of a long run."""
    for name, address in (("list of runs", url), ("run of 20,000 steps", f"{url}/run/runs/long")):
        found = []
        for _ in range(SAMPLES):
            page.goto(address)
            page.wait_for_function(f"({PAINT}) !== null")
            found.append(page.evaluate(PAINT) / 1000)
        show(f"first paint, {name}", found, "1 s")


def drawing(page: Page, address: str) -> None:
    """Measure how long the charts of 20,000 steps take to draw, all of them at once."""
    drawn, opened = [], []
    for _ in range(SAMPLES):
        began_s = time.monotonic()
        page.goto(address)
        wait_for_step(page, POINTS)
        opened.append(time.monotonic() - began_s)
        page.wait_for_timeout(500)
        drawn.append(max(page.evaluate("window.drawnMs")) / 1000)
    show("20,000 points to their picture", drawn, "0.3 s")
    show("page of 20,000 steps, to its picture", opened, "none")


def live_points(page: Page, address: str, run: Path) -> None:
    """Measure the time from a row in the run's file to its point on the screen.

    Args:
        page: A page of the browser.
        address: Address of the run.
        run: Its directory, which is locked as that of a run that trains: others are seldom read.
    """
    with locking_directory(run):
        _live_points(page, address, run)


def _live_points(page: Page, address: str, run: Path) -> None:
    page.goto(address)
    wait_for_step(page, POINTS)
    found = []
    for step in range(POINTS + 1, POINTS + 1 + SAMPLES):
        page.mouse.move(step % 2, 0)
        time.sleep(0.37)  # looks of the page and rows of the run are not in step
        began_s = time.monotonic()
        with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(step_row(step))
        wait_for_step(page, step)
        found.append(time.monotonic() - began_s)
    show("point of a run to the screen, page in use", found, "1 s")


def idle(page: Page, url: str, process: psutil.Process, seconds: float) -> None:
    """Measure the shares of a core that studio and browser use while nothing happens."""
    for name, address in (("list of runs", url), ("run that has ended", f"{url}/run/runs/long")):
        page.goto(address)
        time.sleep(3)
        began_s, used = time.monotonic(), (cpu_s([process]), cpu_s(browsers()))
        page.wait_for_timeout(seconds * 1000)
        passed_s = time.monotonic() - began_s
        share = (cpu_s([process]) - used[0]) / passed_s
        show(f"idle page, {name}, studio, share of a core", [share], "1 %", "%")
        share = (cpu_s(browsers()) - used[1]) / passed_s
        show(f"idle page, {name}, Chromium, share of a core", [share], "none", "%")


def watch(page: Page, url: str, root: Path, process: psutil.Process, seconds: float) -> None:
    """Measure the processor time of browser and studio while a run of 5 steps a second is watched.

    Args:
        page: A page of the browser.
        url: Address of the studio.
        root: Folder of its runs.
        process: Its process.
        seconds: How long to watch.
    """
    run = root / "runs" / "watched"
    write_run(run, WATCHED_STEPS)
    step = WATCHED_STEPS

    def write(for_s: float, *, in_use: bool) -> None:
        nonlocal step
        until_s = time.monotonic() + for_s
        while time.monotonic() < until_s:
            step += 1
            with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:
                file.write(step_row(step))
            if step % CHECKPOINT_STEPS == 0:
                write_checkpoint(run, step)
                if in_use:
                    page.mouse.move(step % 100, 0)
            page.wait_for_timeout(1000 * STEP_S)

    with locking_directory(run):
        page.goto(f"{url}/run/runs/watched")
        wait_for_step(page, WATCHED_STEPS)
        for name, settles_s, in_use in (("in use", SETTLES_S, True), ("at rest", RESTS_S, False)):
            write(settles_s, in_use=in_use)
            began_s, used = time.monotonic(), (cpu_s([process]), cpu_s(browsers()))
            write(seconds, in_use=in_use)
            now, passed_s = (cpu_s([process]), cpu_s(browsers())), time.monotonic() - began_s
            for who, before, after in zip(("studio", "Chromium"), used, now, strict=True):
                row = f"5 steps/s, page {name}, {who}, share of a core"
                show(row, [(after - before) / passed_s], "2 %, both", "%")
        wait_for_step(page, step)


def cost(
    page: BarePage, link: str, root: Path, process: psutil.Process, seconds: float, window: float
) -> None:
    """Measure how much longer a step of a run takes while its page is in use or rests."""
    page.open(link)
    write_recipe(root)
    metrics = root / "runs" / "run" / "metrics.jsonl"
    words = [sys.executable, "-m", "lorakit", "train", str(root / "recipe.yaml")]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": with_bytecode()}
    with subprocess.Popen(words, **quiet) as run:  # type: ignore[call-overload]
        try:
            until_s = time.monotonic() + STARTS_S
            while len(steps_of(metrics)) < 20:
                if run.poll() is not None or time.monotonic() > until_s:
                    sys.exit(f"The run did not start; train {root / 'recipe.yaml'} to see why.")
                time.sleep(0.2)
            rounds = max(1, round(seconds / (window + SETTLES_S) / 2 / len(STATES)))
            used = cpu_s(browsers())
            page.open(f"{link.partition('/access')[0]}/run/runs/run")
            time.sleep(RESTS_S)
            show("Chromium to open the page, seconds of a core", [cpu_s(browsers()) - used], "none")
            compare(page, process, psutil.Process(run.pid), metrics, rounds, window)
        finally:
            run.send_signal(signal.SIGTERM)


def compare(
    page: BarePage,
    studio: psutil.Process,
    run: psutil.Process,
    metrics: Path,
    rounds: int,
    window: float,
) -> None:
    """Let the page be used, hidden and at rest in turn; compare adjacent seconds per step."""
    per_step: dict[str, list[float]] = {state: [] for state in STATES}
    shares: dict[tuple[str, str], list[float]] = {}
    for _ in range(rounds):
        found: dict[str, list[float]] = {state: [] for state in STATES}
        for state in ("used", "hidden", "resting", "resting", "hidden", "used"):
            page.run(f"emitEvent('attention', '{state}')")
            time.sleep(SETTLES_S)  # a page that is shown again catches up
            before, began_s, used = steps_of(metrics), time.monotonic(), used_s(studio, run)
            time.sleep(window)
            passed_s, after = time.monotonic() - began_s, steps_of(metrics)
            for name, value in used_s(studio, run).items():
                shares.setdefault((name, state), []).append(
                    (value - used.get(name, value)) / passed_s
                )
            count = after[-1]["step"] - before[-1]["step"]
            if count:
                found[state].append((after[-1]["wall_s"] - before[-1]["wall_s"]) / count)
        if all(len(values) == 2 for values in found.values()):
            for state, values in found.items():
                per_step[state].append(statistics.mean(values))
    if not per_step["hidden"]:
        sys.exit("No step was logged in some windows; use a longer --window.")
    for state, words in STATES.items():
        show(f"a step while its page is {words}", per_step[state], "none")
    for state, target in (("resting", "1 %"), ("used", "none")):
        pairs = zip(per_step[state], per_step["hidden"], strict=True)
        differences = [one / hidden - 1 for one, hidden in pairs]
        show(f"page {STATES[state]} against hidden, by the clock", differences, target, "%")
        print(f"{'':<52} {mean_of(differences)}")
    for (name, state), values in sorted(shares.items()):
        show(f"{name}, page {STATES[state]}", values, "none", "%")
        print(f"{'':<52} {mean_of(values)}")


def mean_of(values: Sequence[float]) -> str:
    """Return the mean of shares and its standard error in words."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if values[1:] else 0.0
    return f"mean {statistics.mean(values):+.2%} ± {error:.2%} (standard error)"


def wait_for_step(page: Page, step: int) -> None:
    """Wait until the picture of the loss ends with a step."""
    loss = page.get_by_role("img", name="Loss over the steps")
    loss.and_(page.locator(f'[aria-label*=" to {step}, first"]').first).wait_for()


def steps_of(metrics: Path) -> list[dict[str, float]]:
    """Return the logged steps of a run, none before it has begun."""
    if not metrics.exists():
        return []
    whole = metrics.read_text(encoding="utf-8").rpartition("\n")[0]
    return [row for row in map(json.loads, whole.splitlines()) if row.get("event") == "step"]


def step_row(step: int) -> str:
    """Return the line of a logged step with all that training writes there."""
    values = {"event": "step", "step": step, "epoch": step / 2000, "wall_s": step * 0.1}
    values |= {"loss": 1 + math.sin(step / 50) / step**0.5, "grad_norm": 1 + math.sin(step)}
    values |= {"learning_rate": 2e-4 * (1 - step / 40_000), "train_tokens_per_s": 900 + step % 7}
    return json.dumps({**values, "peak_memory_bytes": 7e8}) + "\n"


def write_run(path: Path, steps: int) -> None:
    """Write a run that has ended after many steps."""
    path.mkdir(parents=True)
    recipe = "model: base\ntask: SEQ_CLS\ndata: {train: a.csv}\noutput: out\n"
    (path / "recipe.yaml").write_text(recipe, encoding="utf-8")
    (path / "environment.json").write_text("{}", encoding="utf-8")
    lines = "".join(step_row(step) for step in range(1, steps + 1))
    (path / "metrics.jsonl").write_text(lines, encoding="utf-8")


def write_recipe(root: Path) -> None:
    """Write a small data set, and a recipe that trains on it until it is stopped."""
    lines = [
        f"ticket {n} about {'a bill' if n % 2 else 'a crash'},{n % 2}" for n in range(EXAMPLES)
    ]
    (root / "tickets.csv").write_text("\n".join(["text,label", *lines]) + "\n", encoding="utf-8")
    values = {
        "model": str(base_model_path()),
        "task": "SEQ_CLS",
        "data": {"train": str(root / "tickets.csv"), "validation_fraction": 0},
        "training": {"max_steps": 1_000_000, "logging_steps": 1, "use_cpu": True},
        "output": str(root / "runs" / "run"),
    }
    recipe = Recipe.check(values, "the recipe")
    (root / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")


if __name__ == "__main__":
    main()

"""Take a picture of every page of the studio, at 1280 and 390 pixels: `make screenshots`.

    python -m tools.studio_screenshots docs/images/studio [--runs DIR] [--only NAME ...] [--dark]

DIR is a folder outside of the repository, since the pictures show its path. It gets a few short
runs first.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from io import BytesIO
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright
from tools.browser import find_browser
from tools.studio_process import studio
from tools.studio_runs import OTHER, RUN, RUNNING, SEARCH, STOPPED, RunningRun, make_runs

from lorakit.recipes.run_directory import RunDirectory
from lorakit.runs.drafts import STEPS, Step, delete_draft, new_draft, save_draft
from lorakit.runs.new_recipe import recipe_like

WIDTHS, HEIGHT, TALLEST = (1280, 390), 800, 2_400
SETTLES_MS, LOADING_MS = 2_500, 120_000
MOST_BYTES = 150_000
QUESTION = "Put an item into the queue; wait until a slot is free if the queue is full."
INVENTED_KEY = "lorakit-0123456789abcdef0123456789abcdef01234567"
HIDE_KEYS = """key => {
    const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (texts.nextNode()) {
        const text = texts.currentNode;
        text.data = text.data.replace(/lorakit-[0-9a-f]{40}/g, key);
    }
}"""
"""Shows an invented key instead of the studio's own."""
RUNS = Path(tempfile.gettempdir()) / "lorakit" / "runs"
ADDRESSES = {
    "runs": "/",
    "running": f"/run/{RUNNING}",
    "run": f"/run/{RUN}",
    "compare": f"/compare?runs={RUN},{OTHER},{STOPPED}",
    "search": f"/search/{SEARCH}",
    "playground": f"/playground?runs={RUN},{OTHER}",
    "adapters": "/adapters",
    "adapter": f"/adapters?path={RUN}",
}


def main() -> None:
    """Read the arguments, start a studio and take the pictures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--runs", type=Path, default=RUNS)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--chromium", default=find_browser())
    arguments = parser.parse_args()
    if arguments.chromium is None:
        parser.error("there is no Chromium: `make browser` installs it where it can")
    arguments.output.mkdir(parents=True, exist_ok=True)
    root = arguments.runs.resolve()
    make_runs(root)
    pages = {name: always(address) for name, address in ADDRESSES.items()}
    text = recipe_like(RunDirectory.open(root / RUN).recipe(), "docstrings-r8")
    draft = new_draft(text.replace("r: 16", "r: 8").replace(f"{root}/", ""))

    def at(step: Step) -> Callable[[], str]:
        return lambda: f"/new?draft={save_draft(root, replace(draft, step=step)).id}"

    pages |= {f"new-run-{step}": at(step) for step in STEPS}
    with RunningRun(root), studio(root) as (link, _, _), sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=arguments.chromium, args=["--no-sandbox"]
        )
        page = browser.new_page(color_scheme="dark" if arguments.dark else "light")
        page.set_default_timeout(LOADING_MS)
        page.goto(link)
        url = link.partition("/access")[0]
        for name, address in pages.items():
            if not arguments.only or name in arguments.only:
                take(page, name, lambda make=address: url + make(), arguments.output)
        browser.close()
        delete_draft(root, draft.id)


def always(address: str) -> Callable[[], str]:
    """Return a function that returns an address."""
    return lambda: address


def take(page: Page, name: str, address: Callable[[], str], folder: Path) -> None:
    """Write a picture of a page at each width."""
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": HEIGHT})
        answer = page.goto(address())
        if answer is None or answer.status != 200:
            sys.exit(f"{name}: got status {answer and answer.status}, expected 200.")
        if name == "playground" and width == WIDTHS[0]:
            ask(page)
        if name in ("new-run-data", "new-run-plan"):
            awaited = {"new-run-data": "The first 10 examples", "new-run-plan": "It fits: "}
            page.get_by_text(awaited[name]).wait_for()
        page.wait_for_timeout(SETTLES_MS)
        page.evaluate(HIDE_KEYS, INVENTED_KEY)
        target = folder / f"{name}-{width}.png"
        write_small(page.screenshot(full_page=True), target)
        print(f"{target}: {target.stat().st_size:,} bytes")


def ask(page: Page) -> None:
    """Load the models of the playground and ask them all."""
    page.get_by_role("button", name="Load", exact=True).click()
    page.get_by_text("In memory:").wait_for()
    page.get_by_label("Text", exact=True).fill(QUESTION)
    page.get_by_role("button", name="Ask").click()
    page.get_by_role("button", name="Save as an example").nth(1).wait_for()


def write_small(picture: bytes, target: Path) -> None:
    """Write a PNG of at most MOST_BYTES, with as many colours as that allows."""
    image = Image.open(BytesIO(picture)).convert("RGB")
    image = image.crop((0, 0, image.width, min(image.height, TALLEST)))
    for colours in (256, 128, 64, 32):
        small = image.quantize(palette=commonest(image, colours), dither=Image.Dither.NONE)
        small.save(target, optimize=True)
        if target.stat().st_size <= MOST_BYTES:
            return
    sys.exit(f"{target}: got {target.stat().st_size:,} bytes, expected {MOST_BYTES:,} at most.")


def commonest(image: Image.Image, colours: int) -> Image.Image:
    """Return a palette of the commonest colours, so that grounds of text keep theirs exactly."""
    counted = image.getcolors(image.width * image.height) or []
    chosen = [colour for _, colour in sorted(counted, reverse=True)[:colours]]
    palette = Image.new("P", (1, 1))
    palette.putpalette([channel for colour in chosen for channel in colour])  # type: ignore
    return palette


if __name__ == "__main__":
    main()

"""Take a picture of every page of the studio, at 1280 and 390 pixels: `make screenshots`.

    python tools/studio_screenshots.py docs/images/studio [--runs DIR] [--dark]

DIR is a folder with runs, by default build/studio-runs, where the quickstart trains one if it is
empty. A page that needs what DIR does not have, such as a search, is left out.
"""

import argparse
import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

from playwright.sync_api import Page, sync_playwright

from lorakit.runs.index import list_runs

WIDTHS, HEIGHT = (1280, 390), 800
SETTLES_MS = 2_500
ADDRESSES = {
    "runs": "/",
    "new-run": "/new",
    "run": "/run/{run}",
    "compare": "/compare?runs={run},{other}",
    "search": "/search/{search}",
    "playground": "/playground?runs={run}",
    "adapters": "/adapters?path={run}",
}


def main() -> None:
    """Read the arguments, start a studio and take the pictures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--runs", type=Path, default=Path("build/studio-runs"))
    parser.add_argument("--dark", action="store_true")
    parser.add_argument("--chromium", default=shutil.which("chromium"))
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    addresses = found_addresses(arguments.runs)
    words = [sys.executable, "-m", "lorakit", "studio", str(arguments.runs), "--no-browser"]
    with subprocess.Popen([*words, "--port", "0"], stdout=subprocess.PIPE, text=True) as studio:
        link = next(filter(None, map(find_link, studio.stdout or ())))
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(
                executable_path=arguments.chromium, args=["--no-sandbox"]
            )
            page = browser.new_page(color_scheme="dark" if arguments.dark else "light")
            page.goto(link)
            for name, address in addresses.items():
                take(page, link.partition("/access")[0] + address, arguments.output / name)
            browser.close()
        studio.terminate()


def found_addresses(runs: Path) -> dict[str, str]:
    """Return the addresses of the pages for which a folder has runs."""
    if not list_runs(runs):
        words = [sys.executable, "-m", "lorakit", "quickstart", "--output", str(runs)]
        subprocess.run([*words, "--compare"], check=True)
    rows = list_runs(runs)
    finished = [row.path for row in rows if row.state == "finished" and row.kind == "run"]
    searches = [row.path for row in rows if row.kind == "search"]
    known = dict(zip(("run", "other"), finished, strict=False))
    known |= dict(zip(("search",), searches, strict=False))
    quoted = {name: quote(path) for name, path in known.items()}
    needed = {name: set(re.findall(r"{(\w+)}", text)) for name, text in ADDRESSES.items()}
    return {
        name: address.format(**quoted)
        for name, address in ADDRESSES.items()
        if needed[name] <= set(quoted)
    }


def find_link(line: str) -> str | None:
    """Return the link in a line that the studio prints."""
    found = re.search(r"http://\S+token=\S+", line)
    return found[0] if found else None


def take(page: Page, address: str, path: Path) -> None:
    """Write a picture of a page at each width; leave out a page that the studio does not have."""
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": HEIGHT})
        answer = page.goto(address)
        if answer is None or answer.status != 200:
            print(f"left out: {address}")
            return
        page.wait_for_timeout(SETTLES_MS)
        target = path.with_name(f"{path.name}-{width}.png")
        page.screenshot(path=target, full_page=True)
        print(target)


if __name__ == "__main__":
    main()

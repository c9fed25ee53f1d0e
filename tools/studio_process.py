"""Start a studio and a browser, play a run, and count the processor time that they take."""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil
from websockets.sync.client import connect

_HEADLESS = (
    "--headless --no-sandbox --disable-gpu --no-first-run --window-size=1280,720 "
    "--disable-background-networking --disable-component-update --disable-extensions "
    "--disable-sync --remote-debugging-port=0"
)
_STARTS_S = 30.0
_CHECKPOINT_FILES = 11


@contextmanager
def studio(root: Path) -> Iterator[tuple[str, float, psutil.Process]]:
    """Start a studio; yield its link, when it was started, and its process."""
    words = [sys.executable, "-m", "lorakit", "studio", str(root), "--no-browser", "--port", "0"]
    began_s = time.monotonic()
    quiet = subprocess.DEVNULL  # what it says between the rows
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=quiet, text=True, env=with_bytecode()
    ) as process:
        try:
            link = next(filter(None, map(find_link, process.stdout or ())), None)
            if link is None:
                sys.exit(f"The studio did not start; run `lorakit studio {root}` to see why.")
            yield link, began_s, psutil.Process(process.pid)
        finally:
            process.terminate()


class BarePage:
    """A page of a browser to which no tool listens, as a reader's.

    Playwright listens to each message that a page receives, which takes time from a run that the
    page shows.
    """

    def __init__(self, chromium: str, profile: str):
        """Start a browser with an empty page; `close` ends it.

        Args:
            chromium: The program.
            profile: An empty folder.
        """
        words = [chromium, *_HEADLESS.split(), f"--user-data-dir={profile}", "about:blank"]
        quiet = subprocess.DEVNULL
        self._process = subprocess.Popen(words, stdout=quiet, stderr=quiet)
        listens_at = Path(profile, "DevToolsActivePort")
        until_s = time.monotonic() + _STARTS_S
        while not (listens_at.exists() and listens_at.read_text(encoding="ascii")):
            if time.monotonic() > until_s:
                sys.exit(f"{chromium} did not start within {_STARTS_S:.0f} s.")
            time.sleep(0.1)
        port = listens_at.read_text(encoding="ascii").split()[0]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json") as answer:
            pages = [one for one in json.load(answer) if one["type"] == "page"]
        self._address = pages[0]["webSocketDebuggerUrl"]

    def open(self, url: str) -> None:
        """Go to an address."""
        self._call("Page.navigate", url=url)

    def run(self, code: str) -> None:
        """Run JavaScript in the page."""
        self._call("Runtime.evaluate", expression=code)

    def close(self) -> None:
        """End the browser."""
        self._process.terminate()
        self._process.wait()

    def _call(self, method: str, **parameters: str) -> None:
        with connect(self._address) as socket:
            socket.send(json.dumps({"id": 1, "method": method, "params": parameters}))
            socket.recv()


@contextmanager
def bare_page(chromium: str) -> Iterator[BarePage]:
    """Start a browser with one page, and end it after the block."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        page = BarePage(chromium, profile)
        try:
            yield page
        finally:
            page.close()


def write_checkpoint(run: Path, step: int) -> None:
    """Write a checkpoint of small files, as a run does."""
    folder = run / f"checkpoint-{step}"
    folder.mkdir()
    for number in range(_CHECKPOINT_FILES):
        (folder / f"{number}.json").write_text("{}", encoding="utf-8")


def with_bytecode() -> dict[str, str]:
    """Return the environment in which Python reads and writes compiled files, as by default."""
    return {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}


def find_link(line: str) -> str | None:
    """Return the link in a line that the studio prints."""
    found = re.search(r"http://\S+token=\S+", line)
    return found[0] if found else None


def browsers() -> list[psutil.Process]:
    """Return the processes of the browser, which may run on another machine."""
    found = psutil.Process().children(recursive=True)
    return [one for one in found if one.is_running() and "chrom" in name_of(one)]


def parts_of_browser() -> dict[str, list[psutil.Process]]:
    """Return the processes of the browser by what they do."""
    found: dict[str, list[psutil.Process]] = {}
    for one in browsers():
        kind = re.search(r"--type=([\w-]+)", " ".join(one.cmdline()))
        found.setdefault(f"Chromium's {kind[1] if kind else 'browser'}", []).append(one)
    return found


def name_of(process: psutil.Process) -> str:
    """Return the name of a process, empty if it has ended."""
    try:
        return process.name()
    except psutil.Error:
        return ""


def cpu_s(processes: Sequence[psutil.Process]) -> float:
    """Return the seconds of a core that processes have used; one that has ended counts nothing."""
    total = 0.0
    for process in processes:
        try:
            total += sum(process.cpu_times()[:2])
        except psutil.Error:
            continue
    return total


def used_s(studio: psutil.Process, run: psutil.Process) -> dict[str, float]:
    """Return the seconds of a core that were used so far, by the name of who used them."""
    found = {"studio, of a core": cpu_s([studio]), "Chromium, of a core": cpu_s(browsers())}
    found |= {name: cpu_s(parts) for name, parts in parts_of_browser().items()}
    threads = [Path(f"/proc/{run.pid}/task/{one.id}/schedstat") for one in run.threads()]
    if all(file.exists() for file in threads):
        waited_ns = sum(int(file.read_text(encoding="ascii").split()[1]) for file in threads)
        found["the run's threads wait for a core"] = waited_ns / 1e9
    return found

"""A studio in a process, and pages of a headless Chromium that may ask no other host.

    def test_it(studio, page):
        page.goto(studio.link())
        page.get_by_role("heading", name="Runs").wait_for()

Without Chromium or Playwright these tests are skipped; `make browser` installs them.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import psutil
import pytest
from tools.browser import find_browser

from lorakit import train
from lorakit.runs.paths import STATE_FOLDER
from lorakit.runs.process import send_signal_to
from lorakit.runs.queue import RunQueue
from lorakit.training import Recipe

START_S = 60
LORAKIT = ("-m", "lorakit")


def _reason_to_skip():
    if find_spec("playwright") is None or find_spec("nicegui") is None:
        return "the extras dev and studio are not installed: pip install 'lorakit[dev]'"
    if find_browser() is None:
        return "there is no Chromium: `make browser` installs it where it can"
    return None


class StudioProcess:
    """`lorakit studio` on a free port; `kill` and `start` may follow each other."""

    def __init__(self, root: Path, log: Path):
        self.root, self.log = root, log
        self.port = 0
        self.process = None

    def is_running(self):
        return self.process is not None and self.process.poll() is None

    def end(self):
        if self.is_running():
            self.kill()

    def start(self, program=LORAKIT):
        words = [sys.executable, *program, "studio", str(self.root), "--no-browser"]
        words += ["--port", str(self.port)]
        with self.log.open("ab") as log:
            size = log.tell()
            self.process = subprocess.Popen(
                words, stdout=log, stderr=log, env=os.environ | {"PYTHONUNBUFFERED": "1"}
            )
        deadline = time.monotonic() + START_S
        while (found := self._links(size)) == []:
            assert self.process.poll() is None, self.printed()
            assert time.monotonic() < deadline, f"no link within {START_S} s: {self.printed()}"
            time.sleep(0.05)
        self.url = found[0].partition("/access")[0]
        self.port = int(self.url.rpartition(":")[2])
        return self

    def _links(self, start=0):
        return re.findall(r"http://\S+", self.log.read_bytes()[start:].decode())

    def link(self):
        """Return the link that nobody has used."""
        return self._links()[-1]

    def admit(self, page):
        """Let a page's browser use the link, without drawing the page that it leads to."""
        page.context.request.get(self.link(), max_redirects=0)

    def printed(self):
        return self.log.read_text()

    def kill(self, number=signal.SIGKILL):
        """End the process that listens, which may be a fork that `process` waits for."""
        (pid,) = {
            each.pid
            for each in psutil.net_connections("tcp")
            if each.status == psutil.CONN_LISTEN and each.laddr.port == self.port
        }
        os.kill(pid, number)
        self.process.wait(20)


@pytest.fixture(scope="package")
def folder(tmp_path_factory):
    """The folder that the studio shows from test to test."""
    folder = tmp_path_factory.mktemp("studio") / "runs"
    folder.mkdir()
    return folder


@pytest.fixture
def root(folder, tmp_path):
    """The folder that the studio shows; each test finds it without runs, jobs and drafts."""
    yield folder
    for job in RunQueue(folder).jobs.all():  # nobody waits for what still trains
        if job.state == "running":
            send_signal_to(job, signal.SIGKILL)
    state, gone = folder / STATE_FOLDER, tmp_path / "gone"
    for path in (*folder.iterdir(), *filter(Path.is_dir, state.iterdir())):
        if path != state:  # it has the key of the studio's cookies
            place = gone / path.relative_to(folder)
            place.parent.mkdir(parents=True, exist_ok=True)
            path.rename(place)


@pytest.fixture(autouse=True)
def python(forked_commands):
    """The studio, its commands and its runs are forks of a process that has the libraries."""


@pytest.fixture
def program():
    """What Python runs as lorakit; a test may have another."""


@pytest.fixture
def hub():
    """The hub that the studio's processes ask; a test file may have its own."""


@pytest.fixture(scope="package")
def shared_studio(folder, chromium):
    """A studio that goes on from test to test."""
    process = StudioProcess(folder, folder.with_name("studio.log"))
    yield process
    process.end()


@pytest.fixture
def studio(root, shared_studio, hub, python, program):
    """A studio that shows `root`: the one that runs, unless the test needs another."""
    needs_another = hub is not None or program is not None
    if needs_another:
        shared_studio.end()
    if not shared_studio.is_running():
        shared_studio.start(program or LORAKIT)
    yield shared_studio
    if needs_another:
        shared_studio.end()


@pytest.fixture(scope="package")
def chromium():
    """A headless browser; it ends with the folder, as its event loop would block other tests'."""
    reason = _reason_to_skip()
    if reason:
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=find_browser(),
            # Pages live for a second: to compile their scripts well takes longer than it saves.
            args=[
                "--no-sandbox",
                "--disable-gpu",
                "--js-flags=--no-opt --no-maglev --no-sparkplug",
            ],
        )
        yield browser
        browser.close()


@pytest.fixture
def new_page(chromium):
    """Return a function that opens a page of another browser, with its own cookies.

    A request to another host, or an error in a script of a page, fails the test.
    """
    contexts, wrong = [], []

    def look(request):
        host = re.match(r"\w+://([^/:]*)", request.url)
        if host and host[1] not in ("127.0.0.1", "localhost"):
            wrong.append(f"a request to {request.url}")

    def make(**options):
        context = chromium.new_context(**{"viewport": {"width": 1280, "height": 800}} | options)
        context.set_default_timeout(30_000)
        contexts.append(context)
        context.on("request", look)
        context.on("weberror", lambda error: wrong.append(f"an error in a script: {error.error}"))
        return context.new_page()

    yield make
    for context in contexts:
        context.close()
    assert not wrong, wrong


@pytest.fixture
def page(new_page):
    """A page of a browser that nobody has admitted yet."""
    return new_page()


@pytest.fixture
def admitted(studio, page):
    """A page of a browser that has been admitted."""
    studio.admit(page)
    return page


@pytest.fixture
def trained(root, tiny_llama_dir, tmp_path):
    """A run of two steps in the studio's folder."""
    data = tmp_path / "data.jsonl"
    examples = [
        {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
        for q, a in (("what colour is the sky", "blue"), ("what colour is grass", "green")) * 4
    ]
    data.write_text("".join(json.dumps(each) + "\n" for each in examples))
    values = {
        "model": str(tiny_llama_dir),
        "task": "CAUSAL_LM",
        "data": {"train": str(data), "validation_fraction": 0},
        "lora": {"r": 2},
        "training": {"max_steps": 2, "per_device_train_batch_size": 4, "use_cpu": True},
        "output": str(root / "colours"),
    }
    train(Recipe.check(values, "the recipe"))
    return root / "colours"

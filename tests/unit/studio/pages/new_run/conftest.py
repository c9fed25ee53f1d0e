"""Waiting for what a page does beside the event loop, and recipes of small runs."""

import asyncio
import contextlib
import threading
import time

import pytest

WAIT_S = 90


@pytest.fixture
def see(user):
    """Wait for something on the page: `await see("text")`."""

    async def wait(*args, **options):
        await user.should_see(*args, **options, retries=WAIT_S * 10)

    return wait


@pytest.fixture
def until():
    """Wait for a condition: `await until(lambda: done)`."""

    async def wait(condition):
        deadline = time.monotonic() + WAIT_S
        while not condition():
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)

    return wait


@pytest.fixture
def only(user):
    """Return the one element of a kind, with a label if given: `only(ui.input, "lora.r")`."""

    def find(kind, label=None):
        found = [e for e in user.find(kind=kind).elements if label in (None, e.props.get("label"))]
        assert len(found) == 1, (label, found)
        return found[0]

    return find


@pytest.fixture
def computed_here(monkeypatch):
    """Compute in a thread of this process; its processes are tested where they are."""
    from lorakit.studio.pages.new_run import state

    one_at_a_time = threading.Lock()  # a process has one working directory

    class Here:
        def __init__(self, directory, function, *args, **options):
            self.directory, self.call = directory, (function, args, options)

        def result(self):
            function, args, options = self.call
            with one_at_a_time, contextlib.chdir(self.directory):
                return function(*args, **options)

        def cancel(self):
            pass

    monkeypatch.setattr(state, "Computation", Here)


@pytest.fixture
def tickets(studio):
    """The text of a recipe whose base and data are there."""
    from lorakit.quickstart.model_files import base_model_path
    from lorakit.recipes.template import recipe_text
    from lorakit.recipes.yaml_edits import with_values

    lines = [f"ticket {n} of someone,{'ab'[n % 2]}" for n in range(40)]
    (studio.root / "tickets.csv").write_text("\n".join(["text,label", *lines]))
    written = recipe_text("SEQ_CLS", "recipes/a.yaml", "runs/a", str(base_model_path()))
    return with_values(written, {"data.train": "tickets.csv", "training.use_cpu": True})


@pytest.fixture
def open_at(user, studio):
    """Save a draft and open its page at a step: `await open_at("plan", text)`."""
    from lorakit.runs.drafts import new_draft, save_draft

    async def open_page(step, text):
        draft = save_draft(studio.root, new_draft(text, step=step))
        await user.open(f"/new?draft={draft.id}")
        return draft

    return open_page


@pytest.fixture
def run_page(user):
    """A page of a run, where a start leads to."""
    from nicegui import ui

    @ui.page("/run/{path:path}")
    def show(path: str):
        ui.label(f"The run {path}")

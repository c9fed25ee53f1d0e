"""The page of adapters: what one is made of, and the commands it runs."""

import asyncio
import shutil

import pytest
from nicegui import ui

from lorakit.adapters import Adapter
from lorakit.analysis import analyze_adapter, write_report
from lorakit.runs.adapters import read_adapter

pytestmark = pytest.mark.anyio


@pytest.fixture
def root(studio, adapter_folder):
    """The studio's folder with a run, and adapters outside of runs."""
    shutil.copytree(adapter_folder / "german", studio.root / "runs" / "german" / "adapter")
    (studio.root / "runs" / "german" / "recipe.yaml").write_text("model: x\n")
    for name in ("french", "mood"):
        shutil.copytree(adapter_folder / name, studio.root / name)
    return studio.root


async def ended(is_so):
    async with asyncio.timeout(120):
        while not is_so():
            await asyncio.sleep(0.05)
    await asyncio.sleep(0.7)


def commands_of(root):
    from lorakit.studio.pages.adapters.commands import _started

    return _started[root]


async def test_the_list_has_every_adapter_with_what_it_is(user, root):
    (root / "damaged").mkdir()
    (root / "damaged" / "adapter_config.json").write_text("{")
    await user.open("/adapters")
    for name in ("runs/german", "french", "mood", "damaged"):
        await user.should_see(name)
    await user.should_see("SEQ_CLS")
    await user.should_see("its files cannot be read")


async def test_an_empty_folder_says_where_adapters_come_from(user):
    await user.open("/adapters")
    await user.should_see("There is no adapter in this folder yet")


async def test_an_adapter_shows_its_facts_and_its_analysis(user, root, studio):
    adapter = read_adapter(root, root / "runs" / "german" / "adapter")
    await user.open("/adapters?path=runs/german")
    await user.should_see("CAUSAL_LM")
    await user.should_see(f"{adapter.parameters:,}")
    await user.should_see("Analyse")
    analysis = analyze_adapter(Adapter.load(adapter.directory))
    write_report(adapter.analysis_folder, analysis)
    await user.open("/adapters?path=runs/german")
    await user.should_see("The largest updates")
    largest = max(analysis.updates, key=lambda update: update.norm)
    await user.should_see(largest.path)
    await user.should_see(f"{largest.norm:.3g}")
    await user.should_see("Norm and effective rank by layer")
    await user.should_see("All of it is in runs/german/analysis")


@pytest.mark.slow("a command is a process that imports torch")
async def test_analysing_shows_the_result_when_the_command_has_ended(user, root):
    await user.open("/adapters?path=french")
    user.find("Analyse").click()
    await asyncio.sleep(0.1)
    (command,) = commands_of(root)
    await ended(lambda: command.is_over)
    assert command.problem is None
    await user.should_see("The largest updates")
    assert (root / "french-analysis" / "report.md").is_file()


@pytest.mark.slow("a command is a process that imports torch")
async def test_combine_runs_the_command_and_names_its_files(user, root):
    await user.open("/adapters?path=runs/german")
    await user.should_see("ΔW = 1 runs/german")
    (others,) = [e for e in user.find(ui.select).elements if e.props["label"].startswith("Other")]
    others.set_value(["french"])
    await user.should_see("ΔW = 0.5 runs/german + 0.5 french")
    (button,) = [b for b in user.find(ui.button).elements if b.text == "Combine"]
    press(button)
    await asyncio.sleep(0.1)
    command = commands_of(root)[0]
    assert command.words[-2:] == ("--method", "linear")
    await ended(lambda: command.is_over)
    await user.should_see(str(root / "combined-1" / "adapter_model.safetensors"))
    made = Adapter.load(root / "combined-1")
    assert made.config.r > 0


def press(button):
    for listener in button._event_listeners.values():
        if listener.type == "click":
            button._handle_event({"listener_id": listener.id, "args": {}})


async def test_a_target_outside_the_folder_starts_nothing(user, root, caplog):
    await user.open("/adapters?path=french")
    targets = [e for e in user.find(ui.input).elements if e.props["label"] == "New directory"]
    for target in targets:
        target.set_value("../elsewhere")
    for name in ("Combine", "Merge", "Export"):
        press(next(b for b in user.find(ui.button).elements if b.text == name))
    await asyncio.sleep(0.1)
    assert commands_of(root) == []
    assert any("without '..'" in message for message in user.notify.messages)


async def test_a_mixture_of_sliders_opens_in_the_playground(user, root):
    await user.open("/adapters?path=french")
    (button,) = [b for b in user.find(ui.button).elements if b.text == "Try in the playground"]
    press(button)
    await ended(lambda: list(root.glob(".lorakit/mixtures/*/mixture.json")))
    (place,) = root.glob(".lorakit/mixtures/*")
    await user.open(f"/playground?mixture={place.name}")
    await user.should_see("1 french")


async def test_paths_outside_and_of_something_else_are_refused(user, root):
    await user.open("/adapters?path=../x")
    await user.should_see("it leads out of that folder")
    await user.open("/adapters?path=runs")
    await user.should_see("No adapter at 'runs'")

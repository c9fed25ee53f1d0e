import pytest
from nicegui import ui

from fixtures.run_folders import write_run
from lorakit.studio.pages.run import downloads

pytestmark = pytest.mark.anyio


@pytest.fixture
async def download(user, studio, monkeypatch):
    """Press the button of a file of a run; return the paths that were sent."""
    run, sent = write_run(studio.root / "run", is_finished=True), []
    await user.open("/run/run")

    def press(name):
        monkeypatch.setattr(ui.download, "file", sent.append)
        with user:
            downloads._download(run, name)
        return sent

    return press


async def test_a_file_is_sent(download, studio):
    assert download("report.md") == [studio.root / "run" / "report.md"]


async def test_a_file_that_has_become_a_link_to_elsewhere_is_refused(download, studio, user):
    (studio.root / "run" / "report.md").unlink()
    (studio.root / "run" / "report.md").symlink_to("/etc/passwd")
    assert download("report.md") == []
    await user.should_see("leads out of that folder")


async def test_a_file_that_is_gone_is_said(download, studio, user):
    (studio.root / "run" / "report.md").unlink()
    assert download("report.md") == []
    await user.should_see("there is no such file")


async def test_each_file_has_a_button_with_its_name_once_the_list_is_open(download, user):
    await user.should_not_see("adapter/adapter_config.json")
    user.find(kind=ui.element).trigger("toggle", True)
    labels = [button.props.get("aria-label") for button in user.find(ui.button).elements]
    assert "Download adapter/adapter_config.json" in labels

"""A simulated browser of the studio's pages, in this process: `await user.open("/")`.

pytestmark = pytest.mark.anyio

async def test_it(user, studio):
    await user.open("/")
    await user.should_see("Runs")
"""

import pytest


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture
def studio(tmp_path):
    """A studio of an empty folder; fill `studio.root` before opening a page."""
    from lorakit.studio.context import Studio

    return Studio(tmp_path.resolve())


@pytest.fixture
async def user(studio, caplog):
    """A browser that shows `studio`, with all pages; an error that is logged fails the test."""
    from nicegui.client import Client
    from nicegui.testing.user_simulation import user_simulation

    from lorakit.studio.app import PAGES
    from lorakit.studio.context import open_studio
    from lorakit.studio.frame import register

    async with user_simulation() as simulated:
        open_studio(studio)
        register(PAGES)
        yield simulated
        # NiceGUI would forget the modules of all pages, and with them what tests have imported.
        Client.page_routes.clear()
    failed = [record for record in caplog.get_records("call") if record.levelname == "ERROR"]
    assert not failed, [record.getMessage() for record in failed]

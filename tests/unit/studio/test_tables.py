import pytest
from nicegui import ui

from lorakit.studio.tables import table

pytestmark = pytest.mark.anyio


async def test_cells_are_texts(user):
    @ui.page("/table")
    def show():
        table(("name", "value"), [("<b>x</b>", "1\x07"), ("a long text that may wrap", "2")])

    await user.open("/table")
    await user.should_see("<b>x</b>")
    await user.should_see("1\\x07")

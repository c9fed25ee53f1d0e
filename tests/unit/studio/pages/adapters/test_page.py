"""The page of adapters: the list, and the addresses it refuses."""

import pytest

pytestmark = pytest.mark.anyio


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


async def test_paths_outside_and_of_something_else_are_refused(user, root):
    await user.open("/adapters?path=../x")
    await user.should_see("it leads out of that folder")
    await user.open("/adapters?path=runs")
    await user.should_see("No adapter at 'runs'")

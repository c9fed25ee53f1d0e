"""An adapter is merged, converted and exported on its page, by the commands that it shows."""

import pytest

from lorakit import Adapter

pytestmark = pytest.mark.slow("a run is trained, and each command is a process with torch")


def test_an_adapter_is_merged_converted_and_exported(trained, studio, root, page):
    page.set_default_timeout(120_000)
    studio.admit(page)
    page.goto(f"{studio.url}/adapters")
    page.get_by_role("link", name="colours").click()
    for name, target in (("Merge", "merged"), ("Convert", "portable"), ("Export", "vllm")):
        section = page.locator("section").filter(
            has=page.get_by_role("heading", name=name, exact=True)
        )
        section.get_by_role("button", name=name).click()
        done = page.locator("section").filter(
            has=page.get_by_role("heading", name=f"{name} into colours-{target}")
        )
        done.get_by_role("heading", name="Wrote").wait_for()
        assert page.get_by_role("alert").count() == 0
        assert "lorakit " + name.lower() in done.locator("code").first.text_content()
    assert (root / "colours-merged" / "model.safetensors").is_file()
    assert Adapter.load(root / "colours-portable").factors
    assert list((root / "colours-vllm").rglob("adapter_model.safetensors"))

    page.goto(f"{studio.url}/adapters?path=colours")  # the commands are still there
    page.get_by_role("heading", name="Merge into colours-merged").wait_for()
    section = page.locator("section").filter(
        has=page.get_by_role("heading", name="Merge", exact=True)
    )
    section.get_by_role("button", name="Merge").click()  # nothing is overwritten
    page.get_by_text("colours-merged").last.wait_for()
    page.get_by_role("alert").first.wait_for()

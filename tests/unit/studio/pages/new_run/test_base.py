"""Choosing a base."""

import asyncio
import json
from threading import Event

import pytest
from nicegui import ui

from lorakit.quickstart.model_files import base_model_path
from lorakit.runs.drafts import recent_drafts
from lorakit.runs.recipe_form import check_text
from lorakit.studio.pages.new_run import base

pytestmark = pytest.mark.anyio


async def test_a_base_is_chosen_and_described(user, studio, see, only):
    (studio.root / "mine").mkdir()
    (studio.root / "mine" / "config.json").write_text(json.dumps({"model_type": "special"}))
    (studio.root / "mine" / "model.safetensors").touch()
    await user.open("/new")
    await see("Choose a base first.")
    await see(kind=ui.radio)
    radio = only(ui.radio)
    assert radio.options["mine"] == "mine · in this folder"
    radio.set_value(str(base_model_path()))
    await see("LlamaForCausalLM")
    await see("q_proj")
    await see("4,492,032")
    radio.set_value("mine")
    await see("special")
    (draft,) = recent_drafts(studio.root)
    assert check_text(draft.text, "r").value("model") == "mine"


async def test_the_next_step_has_the_base_that_was_just_chosen(
    user, studio, see, until, only, monkeypatch
):
    (studio.root / "mine").mkdir()
    (studio.root / "mine" / "config.json").write_text(json.dumps({"model_type": "special"}))
    (studio.root / "mine" / "model.safetensors").touch()
    await user.open("/new")
    await see(kind=ui.radio)
    only(ui.radio).set_value(str(base_model_path()))
    await until(lambda: recent_drafts(studio.root))
    describe, asked, may_go_on = base.describe_base, Event(), Event()

    def describe_slowly(*given):
        asked.set()
        assert may_go_on.wait(60)
        return describe(*given)

    monkeypatch.setattr(base, "describe_base", describe_slowly)
    only(ui.radio).set_value("mine")
    await until(asked.is_set)
    user.find("Next: Data").click()
    await asyncio.sleep(0.2)
    assert recent_drafts(studio.root)[0].step == "base"
    may_go_on.set()
    await see("Choose the training data")
    (draft,) = recent_drafts(studio.root)
    assert (draft.step, check_text(draft.text, "r").value("model")) == ("data", "mine")


async def test_another_base_is_typed_and_one_that_is_not_there_says_so(user, see, only):
    await user.open("/new")
    await see(kind=ui.radio)
    only(ui.input).set_value("./nowhere")
    user.find("Take it").click()
    await see("No model in model: got './nowhere', which does not exist.")
    await see("Choose a base first.")  # it is not taken
    only(ui.input).set_value("unknown-owner/unknown-model")
    user.find(kind=ui.input).trigger("keydown.enter")
    await see("This hub id is not on this machine.")


async def test_the_list_shows_the_base_that_is_in_the_recipe(user, studio, see, until, only):
    await user.open("/new")
    await see(kind=ui.radio)
    only(ui.radio).set_value(str(base_model_path()))
    await see("LlamaForCausalLM")
    only(ui.input).set_value("owner/name")
    user.find("Take it").click()
    await see("This hub id is not on this machine.")
    await until(lambda: only(ui.radio).value is None)  # so that it can be chosen again
    only(ui.radio).set_value(str(base_model_path()))
    await see("LlamaForCausalLM")
    only(ui.input).set_value("n" * 300)
    user.find("Take it").click()
    await see("which is neither a directory nor a hub id")
    assert only(ui.radio).value == str(base_model_path())


async def test_other_drafts_are_offered(user, see, open_at, tickets):
    draft = await open_at("method", tickets)
    await user.open("/new")
    await see("Begun and not started")
    targets = {link.props["href"] for link in user.find(kind=ui.link).elements}
    assert f"/new?draft={draft.id}" in targets

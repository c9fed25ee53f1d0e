"""The memory of a run, and what would help."""

import pytest

from lorakit.recipes.yaml_edits import with_values
from lorakit.runs.drafts import load_draft
from lorakit.runs.memory_answer import MemoryAnswer, Remedy
from lorakit.runs.recipe_form import check_text
from lorakit.studio.pages.new_run import plan

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("computed_here")]


def answer(**changes):
    values = {
        **{"verdict": "It fits: 1.0 GB of 2.0 GB.", "fits": True, "device": "cpu"},
        **{"by_purpose": {"base weights": 10**9}, "needed_bytes": 10**9, "memory_bytes": 2 * 10**9},
        **{"trainable": 10, "total": 1000, "adapter_file_bytes": 40, "batch_rows": 8},
        **{"batch_tokens": 16, "updates": 500, "tokens": 9000, "notes": (), "remedies": ()},
    }
    return MemoryAnswer(**{**values, **changes})


@pytest.mark.usefixtures("few_changes")
async def test_a_run_that_fits_shows_its_parts(see, open_at, tickets, tiny_distilbert_dir, user):
    await open_at(
        "plan", with_values(tickets, {"model": tiny_distilbert_dir, "data.max_length": 32})
    )
    await see("It fits: ")
    for text in ("base weights", "saved activations", "Python and its libraries"):
        await see(text)
    user.find("What would save memory?").click()
    await see("activation checkpointing")


async def test_a_remedy_is_written_into_the_recipe(
    see, until, open_at, tickets, user, studio, monkeypatch
):
    remedy = Remedy("a base in 4 bits", {"quantization.bits": 4}, 5 * 10**8, 10**9, True)
    small = answer(verdict="It does not fit: it needs 1.5 GB.", fits=False, remedies=(remedy,))
    asked = []

    def memory_of(recipe, **options):
        asked.append(recipe)
        return answer() if recipe.quantization else small

    monkeypatch.setattr(plan, "memory_of", memory_of)
    draft = await open_at("plan", tickets)
    await see("It does not fit")
    await see("saves 500.0 MB, then needs 1.0 GB; fits")
    user.find("Apply").click()
    await see("It fits: 1.0 GB of 2.0 GB.")
    saved = check_text(load_draft(studio.root, draft.id).text, "r").recipe
    assert saved.quantization.bits == 4 and len(asked) == 2


async def test_few_steps_are_said_and_made_more(see, open_at, tickets, user, studio, monkeypatch):
    monkeypatch.setattr(plan, "memory_of", lambda recipe, **options: answer(updates=12))
    draft = await open_at("plan", tickets)
    await see("Only 12 optimizer steps")
    user.find("Train 25 epochs").click()
    await see("Now in the recipe: training.num_train_epochs: 25")
    saved = check_text(load_draft(studio.root, draft.id).text, "r")
    assert saved.value("training.num_train_epochs") == 25


async def test_an_error_of_the_plan_is_its_sentence(see, open_at, tickets, studio):
    (studio.root / "tickets.csv").unlink()
    await open_at("plan", tickets)
    await see("No data in data.train: got 'tickets.csv'")

"""The whole walk of a new run by the keyboard alone, from the list of runs to its page."""

import re

from lorakit.recipes.yaml_text import read_mapping

KINDS = [("fine", "good"), ("dull", "bad"), ("great", "good"), ("poor", "bad")]
FILMS = "".join(f"A {word} film number {n},{kind}\n" for n in range(10) for word, kind in KINDS)
FOCUSED = """() => {
    const one = document.activeElement;
    const name = one.ariaLabel || one.labels?.[0]?.textContent || one.textContent;
    return name.trim().replace(/\\s+/g, ' ');
}"""


def reach(page, name, most=90):
    """Press Tab until what is focused has a name; return the name."""
    seen = []
    for _ in range(most):
        page.keyboard.press("Tab")
        seen.append(page.evaluate(FOCUSED))
        if re.search(name, seen[-1]):
            return seen[-1]
    raise AssertionError(f"Tab does not reach {name!r}, but {seen}")


def press(page, name, key="Enter"):
    reach(page, name)
    page.keyboard.press(key)


def test_a_run_is_started_by_the_keyboard_alone(studio, root, page):
    page.set_default_timeout(120_000)
    (root / "films.csv").write_text("text,label\n" + FILMS)
    page.goto(studio.link())
    page.get_by_role("heading", name="Runs").wait_for()
    press(page, "^New run$")
    page.get_by_text("Choose a base model").wait_for()
    press(page, "^quickstart", "Space")
    page.get_by_text("LlamaForCausalLM").wait_for()
    press(page, "^Next: Data$")
    page.get_by_text("Choose the training data").wait_for()
    press(page, r"^films\.csv", "Space")
    page.get_by_text("The first 10 examples").wait_for()
    press(page, "^Next: Method$")
    page.get_by_role("heading", name="The recipe").wait_for()
    reach(page, r"^training\.num_train_epochs")
    page.keyboard.press("Control+A")
    page.keyboard.type("1")
    reach(page, "model:")  # the text of the recipe, which may show its other lines
    page.keyboard.press("Escape")  # lets Tab leave the text, which else indents
    press(page, "^Next: Plan$")
    page.get_by_text("It fits: ").wait_for()
    press(page, "^Next: Start$")
    page.get_by_text("The same from a terminal").wait_for()
    press(page, "^Start training$")
    page.get_by_role("heading", name="films").wait_for()
    (recipe,) = (root / "recipes").glob("*.yaml")
    assert read_mapping(recipe)["training"]["num_train_epochs"] == 1

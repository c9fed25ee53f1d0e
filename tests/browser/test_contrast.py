"""Texts can be read in light and dark, and whatever takes a focus has a name (WCAG AA)."""

import json

import pytest

from fixtures.run_folders import RECIPE, made_run, write_run
from fixtures.written_searches import write_search
from lorakit.quickstart.model_files import base_model_path
from lorakit.recipes.template import recipe_text
from lorakit.recipes.yaml_edits import with_values
from lorakit.runs.drafts import new_draft, save_draft
from lorakit.runs.notes import write_note, write_tags

PALE = """() => {
    const channels = (text) => {
        const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number);
        return [r, g, b, a];
    };
    const over = ([r, g, b, a], below) => [r, g, b].map((c, n) => a * c + (1 - a) * below[n]);
    const light = (colour) => {
        const [r, g, b] = colour.map((c) => {
            const share = c / 255;
            return share <= 0.03928 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
        });
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const ground = (element) => {
        if (!element) return matchMedia('(prefers-color-scheme: dark)').matches
            ? [20, 23, 29] : [255, 255, 255];
        const own = channels(getComputedStyle(element).backgroundColor);
        return over(own, ground(element.parentElement));
    };
    const LEFT_OUT = 'script, style, [disabled], .disabled, [aria-disabled=true], '
        + '[aria-hidden=true]';
    const found = [];
    const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (texts.nextNode()) {
        const element = texts.currentNode.parentElement;
        const text = texts.currentNode.data.trim();
        if (!text || !element.checkVisibility({ opacityProperty: true })) continue;
        if (element.closest(LEFT_OUT)) continue;
        const box = element.getBoundingClientRect();
        if (box.width < 2 || box.height < 2) continue;
        const style = getComputedStyle(element), below = ground(element);
        const [one, other] = [light(over(channels(style.color), below)), light(below)];
        const ratio = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
        const size = parseFloat(style.fontSize);
        const isBold = Number(style.fontWeight) >= 700, isIcon = element.closest('.q-icon');
        const isLarge = isIcon || size >= 24 || (size >= 18.66 && isBold);
        if (ratio < (isLarge ? 3 : 4.5))
            found.push(`${text.slice(0, 40)}: ${ratio.toFixed(2)} (${style.color} on `
                + `${below.map(Math.round)})`);
    }
    return [...new Set(found)];
}"""
NAMELESS = """() => [...document.querySelectorAll(
    'button, a[href], input:not([type=hidden]), select, textarea, [tabindex="0"]'
)].filter((one) => one.checkVisibility() && !(
    one.ariaLabel || one.labels?.length || one.textContent.trim() || one.title || one.alt
    || one.getAttribute('aria-labelledby') || one.placeholder || one.ariaHidden === 'true'
)).map((one) => one.outerHTML.slice(0, 200))"""


INK = "getComputedStyle(document.body).color"


@pytest.fixture
def addresses(root):
    """An address for each page, on runs in every state."""
    write_run(root / "run", is_finished=True)
    verdict = {"sentence": "Better than guessing.", "outcome": "better"}
    (root / "run" / "verdict.json").write_text(json.dumps(verdict))
    rows = [
        {"text": f"text {n}", "expected": "ab"[n % 2], "prediction": "ab"[n % 3 > 0]}
        | {"base_prediction": "a", "probability": 0.7}
        for n in range(8)
    ]
    (root / "run" / "predictions.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    write_run(root / "other", recipe=RECIPE.replace("r: 4", "r: 8"))
    write_tags(root / "other", ["first"])
    write_note(root / "other", "A note.")
    (made_run(root, "damaged") / "recipe.yaml").write_text("model: [")
    write_search(
        root / "search", ("finished", 4, [0.5, 0.6]), ("failed", 8, []), ("running", 64, [0.9])
    )
    (root / "films.csv").write_text("text,label\n" + "A film,good\nA bore,bad\n" * 20)
    text = recipe_text("SEQ_CLS", "recipes/a.yaml", "a", str(base_model_path()), "films.csv")
    drafts = {
        step: save_draft(root, new_draft(text, step=step)).id
        for step in ("base", "data", "plan", "start")
    }
    wrong = with_values(text, {"lora.r": 0})
    drafts["method"] = save_draft(root, new_draft(wrong, step="method")).id
    return [
        *("/", "/run/run", "/run/other", "/run/damaged", "/compare?runs=run,other"),
        *("/search/search", "/playground", "/adapters", "/nowhere", "/new?continue=run"),
        *(f"/new?draft={draft}" for draft in drafts.values()),
    ]


def test_every_text_can_be_read_and_every_control_has_a_name(studio, addresses, new_page):
    page = new_page(color_scheme="light", reduced_motion="reduce")
    studio.admit(page)
    wrong = {}
    for address in addresses:
        page.emulate_media(color_scheme="light")
        page.goto(studio.url + address)
        page.get_by_role("heading").first.wait_for()
        page.wait_for_timeout(1500)
        found = page.evaluate(PALE) + page.evaluate(NAMELESS)
        light = page.evaluate(INK)
        page.emulate_media(color_scheme="dark")
        page.wait_for_timeout(500)  # colours fade from one scheme to the other
        assert page.evaluate(INK) != light, "the page has not become dark"
        if found := found + page.evaluate(PALE) + page.evaluate(NAMELESS):
            wrong[address] = found
    assert not wrong, json.dumps(wrong, indent=1)

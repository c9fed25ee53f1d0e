"""The list of runs in a real browser: hostile names, two browsers, a narrow screen, keyboard."""

import re

from fixtures.run_folders import locked_by, made_run
from lorakit.runs.notes import read_notes, write_note


def opened(studio, page):
    page.goto(studio.link())
    page.get_by_role("heading", name="Runs").wait_for()
    return page


def test_hostile_texts_are_shown_as_texts(studio, page, root):
    name = "<script>document.title='hacked'</script>".replace("/", "∕")
    path = made_run(root, name, model="<b>bold</b> 😀")
    write_note(path, "<img src=x onerror=\"document.title='hacked'\">")
    made_run(root, "{{ 7 * 7 }}")
    opened(studio, page)
    page.get_by_role("link", name=name).wait_for()
    page.get_by_text("<b>bold</b> 😀").wait_for()
    page.get_by_text("<img src=x").wait_for()
    page.get_by_role("link", name="{{ 7 * 7 }}").wait_for()
    assert page.title() == "Runs · lorakit studio"


def test_nothing_outside_the_folder_is_shown(studio, page):
    opened(studio, page)
    for path in ("/run/..%2f..%2fetc", "/run/../../etc/passwd", "/run/%2fetc%2fpasswd", "/nowhere"):
        page.goto(studio.url + path)
        text = page.get_by_role("main").inner_text()
        assert "root:" not in text, path
        said = ("leads out of that folder", "No page at", "Nothing at")
        assert any(words in text for words in said), path


def test_two_browsers_see_the_same(studio, page, new_page, root):
    path = made_run(root, "a")
    opened(studio, page)
    other = opened(studio, new_page())
    page.get_by_label("Tags and note of a").click()
    page.get_by_label("Note", exact=True).fill("Seen by both.")
    page.get_by_role("button", name="Save").click()
    other.get_by_text("Seen by both.").wait_for()
    assert read_notes(path).note == "Seen by both."
    other.get_by_label("Delete a").click()
    other.get_by_role("button", name="Move to the trash").click()
    page.get_by_text("There is no run in this folder yet.").wait_for()


def test_a_state_changes_on_the_screen_within_two_seconds(studio, page, root):
    path = made_run(root, "a")
    opened(studio, page)
    page.locator(".badge-interrupted").wait_for()
    locked_by(path, studio.process.pid)
    page.locator(".badge-running").wait_for(timeout=2_000)


def test_chosen_runs_are_compared(studio, page, root):
    for name in ("red", "blue", "green"):
        made_run(root, name)
    opened(studio, page)
    for name in ("red", "blue"):
        page.get_by_role("checkbox", name=f"Select {name}").click()
    page.get_by_role("button", name="Compare 2").click()
    page.wait_for_url(re.compile(r"/compare\?runs=.*(red|blue)"))
    page.get_by_role("link", name="Runs").click()
    page.get_by_role("checkbox", name="Select all runs").click()
    page.get_by_role("button", name="Compare 3").wait_for()


def test_a_filter_survives_a_reload(studio, page, root):
    made_run(root, "red")
    made_run(root, "blue")
    opened(studio, page)
    page.get_by_label("Filter").fill("red")
    page.get_by_text("1 of 2 runs").wait_for()
    page.wait_for_url(re.compile("q=red"))
    page.reload()
    page.get_by_text("1 of 2 runs").wait_for()
    assert page.get_by_role("link", name="blue").count() == 0


def test_the_keyboard_reaches_everything(studio, page, root):
    made_run(root, "a")
    opened(studio, page).get_by_label("Delete a").wait_for()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.keyboard.press("Enter")
    for _ in range(14):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.ariaLabel") == "Delete a":
            break
    page.keyboard.press("Enter")
    page.get_by_text("Move a to the trash?").wait_for()


def test_nothing_scrolls_sideways(studio, new_page, root):
    made_run(root, "a-long-name-" * 9, rows=[{"event": "step", "step": 3, "wall_s": 7.0}])
    (made_run(root, "damaged") / "recipe.yaml").write_text("model: [")
    page = opened(studio, new_page())
    for width in (360, 390, 1280):
        page.set_viewport_size({"width": width, "height": 780})
        page.reload()
        page.get_by_text("damaged").first.wait_for()
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), width


def test_the_dark_switch_is_remembered(studio, page):
    opened(studio, page)
    assert page.evaluate("document.body.classList.contains('body--dark')") is False
    page.get_by_label("Dark or light").click()
    page.wait_for_function("document.cookie.includes('lorakit-dark=1')")
    page.reload()
    page.get_by_role("heading", name="Runs").wait_for()
    assert page.evaluate("document.body.classList.contains('body--dark')") is True

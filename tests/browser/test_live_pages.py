"""The live pages in a browser: a run that goes on, 20,000 steps, hostile texts, phones."""

import json
import os

import pytest

from fixtures.run_folders import RECIPE, append, locked_by, step_row, write_run
from fixtures.written_searches import write_search


def loss(page):
    return page.get_by_role("img", name="Loss over the steps")


def wait_for_step(page, step, timeout=20_000):
    """Wait until the picture of the loss ends with a step."""
    loss(page).and_(page.locator(f'[aria-label*=" to {step}, first"]').first).wait_for(
        timeout=timeout
    )


def test_a_point_appears_and_a_reload_shows_the_whole_run(studio, root, admitted):
    page, run = admitted, write_run(root / "run", 30)
    page.goto(f"{studio.url}/run/run")
    wait_for_step(page, 30)
    append(run, step_row(31, 0.5))
    wait_for_step(page, 31)
    page.reload()
    wait_for_step(page, 31)
    assert "31 points from 1 to 31, first 2, last 0.5" in loss(page).get_attribute("aria-label")


def test_a_page_that_was_closed_comes_back_to_a_run_that_has_gone_on(studio, root, admitted):
    run = write_run(root / "run", 30)
    admitted.goto(f"{studio.url}/run/run")
    wait_for_step(admitted, 30)
    context = admitted.context
    admitted.close()
    append(run, *(step_row(step, 1.0) for step in range(31, 61)))
    page = context.new_page()
    page.goto(f"{studio.url}/run/run")
    wait_for_step(page, 60)


def test_a_page_that_has_slept_shows_what_happened_meanwhile(studio, root, admitted):
    page, run = admitted, write_run(root / "run", 30)
    page.goto(f"{studio.url}/run/run")
    wait_for_step(page, 30)
    page.context.set_offline(True)
    append(run, *(step_row(step, 1.0) for step in range(31, 61)))
    page.wait_for_timeout(1500)
    page.context.set_offline(False)
    wait_for_step(page, 60, 60_000)


def test_a_page_outlives_the_studio(studio, root, admitted):
    page, run = admitted, write_run(root / "run", 30)
    page.goto(f"{studio.url}/run/run")
    wait_for_step(page, 30)
    studio.kill()
    append(run, step_row(31, 1.0))
    studio.start()
    wait_for_step(page, 31, 60_000)


def test_a_run_of_twenty_thousand_steps_is_drawn_whole(studio, root, admitted):
    page = admitted
    run = write_run(root / "run", 20_000, loss=lambda step: 9.0 if step == 7_777 else 1.0)
    page.goto(f"{studio.url}/run/run")
    wait_for_step(page, 20_000)
    assert "20000 points from 1 to 20000" in loss(page).get_attribute("aria-label")
    assert "highest 9" in loss(page).get_attribute("aria-label")
    append(run, step_row(20_001, 0.25))
    wait_for_step(page, 20_001)
    assert "lowest 0.25, highest 9" in loss(page).get_attribute("aria-label")


def test_a_chart_out_of_sight_is_drawn_when_it_is_seen(studio, root, new_page):
    page, run = new_page(viewport={"width": 1280, "height": 300}), write_run(root / "run", 30)
    studio.admit(page)
    page.goto(f"{studio.url}/run/run")
    wait_for_step(page, 30)
    memory = page.get_by_role("img", name="Peak memory (GB) over the steps")
    last = "(one) => one.lorakitComponent.chart.getOption().series[0].data.at(-1)[0]"
    page.wait_for_function("document.querySelectorAll('[role=img]').length > 4")
    page.wait_for_timeout(500)
    append(run, step_row(31, 1.0))
    memory.and_(page.locator('[aria-label*=" to 31, first"]')).wait_for()  # the words are new
    assert memory.evaluate(last) == 30
    memory.scroll_into_view_if_needed()
    page.wait_for_timeout(500)
    assert memory.evaluate(last) == 31


def test_a_resumed_run_forgets_the_steps_it_repeats(studio, root, admitted):
    page = admitted
    run = write_run(root / "run", 30)
    page.goto(f"{studio.url}/run/run")
    wait_for_step(page, 30)
    write_run(run, 20)
    wait_for_step(page, 20)


def test_texts_of_a_run_are_never_html(studio, root, admitted):
    page = admitted
    hacked = '<script>document.title = "hacked"</script><img src=x onerror="document.title=1">'
    recipe = RECIPE.replace("<script>alert(1)</script>", hacked.replace("'", "''"))
    run = write_run(root / "run 😀 <b>", recipe=recipe, is_finished=True)
    rows = [
        {"text": hacked, "expected": label, "prediction": "😀", "base_prediction": hacked}
        for label in ("😀", hacked)
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (run / "predictions.jsonl").write_text(text, encoding="utf-8")
    write_search(root / "search", ("failed", 4, []), ("finished", 8, [0.5]))
    for path in ("run/run 😀 <b>", "compare?runs=run 😀 <b>", "search/search"):
        page.goto(f"{studio.url}/{path}")
        page.get_by_role("img").first.wait_for()
        page.wait_for_timeout(300)
        assert "lorakit studio" in page.title()
        assert page.locator("main img[src=x]").count() == 0
        assert page.locator("main script").count() == 0
    page.goto(f"{studio.url}/run/run 😀 <b>")
    page.get_by_role("heading", name="run 😀 <b>").wait_for()
    assert page.get_by_role("cell", name=hacked).first.is_visible()


def test_a_phone_needs_no_sideways_scrolling(studio, root, new_page):
    write_run(root / "run", is_finished=True)
    write_run(root / "other", recipe=RECIPE.replace("r: 4", "r: 8"))
    write_search(root / "search", ("finished", 4, [0.5, 0.6]), ("running", 64, [0.9]))
    page = new_page(viewport={"width": 360, "height": 740})
    studio.admit(page)
    for path in ("run/run", "compare?runs=run,other", "search/search"):
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            page.goto(f"{studio.url}/{path}")
            page.get_by_role("img").first.wait_for()
            page.wait_for_timeout(300)
            too_wide = page.evaluate("document.documentElement.scrollWidth - innerWidth")
            assert too_wide <= 0, (path, scheme)


def test_the_end_of_a_log_is_in_sight_and_stays_there(studio, root, admitted):
    page, run = admitted, write_run(root / "run", 200)
    page.goto(f"{studio.url}/run/run")
    wait_for_step(page, 200)
    page.get_by_role("heading", name="Log").click()
    log = page.locator(".log")
    is_at_end = "(log) => log.scrollTop > -1 && log.scrollHeight > log.clientHeight"
    assert log.evaluate(is_at_end) and '"step": 200' in log.inner_text()
    append(run, step_row(201, 1.0))
    wait_for_step(page, 201)
    page.get_by_text('"step": 201').wait_for()
    assert log.evaluate(is_at_end)


def test_a_verdict_is_read_at_the_top_of_its_run(studio, root, admitted):
    run = write_run(root / "run", is_finished=True)
    verdict = {"sentence": "Better than <b>guessing</b>.", "outcome": "better"}
    (run / "verdict.json").write_text(json.dumps(verdict))
    admitted.goto(f"{studio.url}/run/run")
    sentence = admitted.get_by_text("Better than <b>guessing</b>.")
    assert sentence.bounding_box()["y"] < admitted.viewport_size["height"] / 2


def test_a_file_is_downloaded(studio, root, admitted):
    write_run(root / "run", is_finished=True)
    admitted.goto(f"{studio.url}/run/run")
    admitted.get_by_role("heading", name="Files").click()
    with admitted.expect_download() as download:
        admitted.get_by_role("button", name="Download report.md").click()
    assert download.value.path().read_bytes() == (root / "run" / "report.md").read_bytes()


def test_detail_appears_when_the_reader_zooms_in(studio, root, admitted):
    page = admitted
    write_run(root / "run", 20_000)
    page.goto(f"{studio.url}/run/run")
    wait_for_step(page, 20_000)
    box = loss(page).bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.keyboard.down("Control")
    for _ in range(4):
        page.mouse.wheel(0, -400)
        page.wait_for_timeout(100)
    page.keyboard.up("Control")
    page.wait_for_timeout(1500)
    wait_for_step(page, 20_000)  # its description is still of the whole run


def test_new_points_are_drawn_over_the_chart_until_somebody_points_at_it(studio, root, admitted):
    page, run = admitted, write_run(root / "run", 400)
    locked_by(run, os.getpid())
    page.goto(f"{studio.url}/run/run")
    wait_for_step(page, 400)
    in_chart = "(one) => one.lorakitComponent.chart.getOption().series[0].data.at(-1)[0]"
    is_over = "(one) => Boolean(one.lorakitComponent.lorakitHasTail)"
    for step in range(401, 600):
        append(run, step_row(step, 2 / step))
        page.wait_for_timeout(100)
        if loss(page).evaluate(is_over):
            break
    wait_for_step(page, step)
    drawn, last = loss(page).evaluate(in_chart), step
    assert loss(page).evaluate(is_over) and drawn < last
    painted = """(one) => {
        const canvas = one.lorakitComponent.lorakitCanvas;
        const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
        return data.some((value) => value > 0);
    }"""
    assert loss(page).evaluate(painted)
    loss(page).hover()
    assert loss(page).evaluate(in_chart) == last and not loss(page).evaluate(painted)


def test_the_room_for_what_comes_goes_when_nothing_comes(studio, root, admitted):
    page, run = admitted, write_run(root / "run", 400)
    page.clock.install()
    page.goto(f"{studio.url}/run/run")
    wait_for_step(page, 400)
    limit = "(one) => one.lorakitComponent.chart.getOption().xAxis[0].max"
    assert loss(page).evaluate(limit) == "dataMax"
    for step in range(401, 500):
        append(run, step_row(step, 2 / step))
        page.wait_for_timeout(100)
        page.clock.run_for(500)
        if loss(page).evaluate(limit) != "dataMax":
            break
    assert loss(page).evaluate(limit) > step
    label = "(one) => one.lorakitComponent.chart.getOption().xAxis[0].axisLabel.showMaxLabel"
    assert loss(page).evaluate(label) is False  # the room ends at no round number
    page.clock.run_for(60_000)
    assert loss(page).evaluate(limit) == "dataMax"


def test_a_page_that_nobody_sees_rests_and_catches_up(studio, root, admitted):
    page, run = admitted, write_run(root / "run", 30)
    page.goto(f"{studio.url}/run/run")
    wait_for_step(page, 30)
    hide = """(is_hidden) => {
        Object.defineProperty(document, "hidden", { configurable: true, get: () => is_hidden });
        document.dispatchEvent(new Event("visibilitychange"));
    }"""
    page.evaluate(hide, True)
    page.wait_for_timeout(500)
    append(run, step_row(31, 1.0))
    page.wait_for_timeout(3000)
    assert " to 30, first" in loss(page).get_attribute("aria-label")
    page.evaluate(hide, False)
    wait_for_step(page, 31)


_RESTS_SOON = """
from lorakit.studio import live

live._RESTS_AFTER_S, live._REST_S = 0.5, 3600

from lorakit.__main__ import main

main()
"""


@pytest.mark.parametrize("program", [("-c", _RESTS_SOON)])
def test_a_page_at_rest_shows_what_is_new_as_soon_as_it_is_used(studio, root, admitted):
    page, run, step = admitted, write_run(root / "run", 30), 30
    page.goto(f"{studio.url}/run/run")
    wait_for_step(page, step)
    uses = (
        lambda: page.mouse.move(step, step),
        lambda: page.mouse.wheel(0, 1),
        lambda: page.keyboard.press("Shift"),
    )
    for use in uses:
        for _ in range(20):  # until its last use is half a second ago
            step += 1
            append(run, step_row(step, 1.0))
            page.wait_for_timeout(1500)
            if f" to {step}, first" not in loss(page).get_attribute("aria-label"):
                break
        else:
            pytest.fail("The page does not rest.")
        use()
        wait_for_step(page, step)


def test_a_log_is_sent_while_it_is_open(studio, root, admitted):
    page, run = admitted, write_run(root / "run", 30)
    page.goto(f"{studio.url}/run/run")
    wait_for_step(page, 30)
    append(run, step_row(31, 1.0))
    wait_for_step(page, 31)
    assert '"step": 31' not in page.locator(".log").text_content()
    page.get_by_role("heading", name="Log").click()
    page.get_by_text('"step": 31').wait_for()

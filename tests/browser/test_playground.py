"""A trained run is tried in the playground; a vote on it is found in its file."""

import json
import re
import signal
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow("a run is trained, and a process loads its base")


def test_a_run_is_tried_voted_on_and_the_vote_is_in_its_file(trained, studio, page):
    studio.admit(page)
    page.goto(f"{studio.url}/playground?runs=colours")
    page.get_by_text("Only one base is in memory at a time").wait_for()
    page.get_by_role("button", name="Load", exact=True).click()
    page.get_by_text("In memory:").wait_for(timeout=120_000)
    page.get_by_label("Text", exact=True).fill("what colour is the sky")
    page.get_by_label("New tokens at most").fill("8")
    page.get_by_label("Temperature").fill("1.5")
    page.get_by_role("button", name="Ask").click()
    page.get_by_role("button", name="Better: colours").click(timeout=60_000)
    page.get_by_text(re.compile(r"Saved\. preferences/chat\.jsonl has 1 vote now")).wait_for()
    (line,) = (trained.parent / "preferences" / "chat.jsonl").read_text().splitlines()
    vote = json.loads(line)
    assert vote["prompt"] == [{"role": "user", "content": "what colour is the sky"}]
    assert vote["chosen_from"] == "colours" and vote["chosen"] != vote["rejected"]

    page.reload()  # the answers belong to the studio, not to the page
    page.get_by_role("button", name="Correct the answer of colours").click()
    page.get_by_label("The right answer").fill("It is blue.")
    page.get_by_role("button", name="Save the correction").click()
    page.get_by_text("chat.jsonl has 2 votes now").wait_for()

    for name, program in (("curl", ["sh", "-c"]), ("Python", [sys.executable, "-c"])):
        shown = page.get_by_role("button", name=f"Copy the {name} lines").locator("..")
        lines = shown.locator("code").text_content()
        done = subprocess.run([*program, lines], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0 and "error" not in done.stdout, done

    page.goto(f"{studio.url}/adapters?path=colours")
    page.get_by_role("button", name="Try in the playground").click()
    page.get_by_text("Only one base").or_(page.get_by_text("is in memory;")).wait_for(
        timeout=120_000
    )
    page.wait_for_url("**mixture=**")

    studio.kill(signal.SIGINT)  # a base in memory does not hold up the end
    assert studio.process.returncode in (0, 130), studio.printed()

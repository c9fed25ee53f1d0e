"""Kill -9 of the studio and of a run: what trains goes on, what is open comes back."""

import json
import os
import signal
import time

from lorakit.recipes.directory_lock import lock_holder
from lorakit.runs.queue import RunQueue

WAIT_S = 180


def waiting_for(condition, what):
    deadline = time.monotonic() + WAIT_S
    while not (found := condition()):
        assert time.monotonic() < deadline, what
        time.sleep(0.1)
    return found


def started(root, tiny_llama_dir, prompt_jsonl, steps, save_steps):
    values = {
        "model": str(tiny_llama_dir),
        "task": "CAUSAL_LM",
        "data": {"train": str(prompt_jsonl), "validation_fraction": 0.25},
        "lora": {"r": 2, "target_modules": ["q_proj"]},
        "training": {
            "max_steps": steps,
            "save_steps": save_steps,
            "logging_steps": 1,
            "use_cpu": True,
        },
        "output": "tiny",
    }
    (root / "tiny.yaml").write_text(json.dumps(values))
    return RunQueue(root).add(["train", "tiny.yaml"], "tiny", about={"task": "CAUSAL_LM"})


def test_a_run_outlives_the_studio_and_its_page_comes_back(
    studio, page, root, tiny_llama_dir, prompt_jsonl
):
    job = started(root, tiny_llama_dir, prompt_jsonl, steps=150, save_steps=50)
    page.goto(studio.link())
    page.locator(".badge-running").wait_for()
    log = root / "tiny" / "metrics.jsonl"
    waiting_for(lambda: log.exists() and log.stat().st_size, job.log_file.read_text)
    studio.kill()
    size = log.stat().st_size
    waiting_for(lambda: log.stat().st_size > size, "the run goes on without the studio")
    studio.start()  # on the same port; nobody touches the page
    page.get_by_role("heading", name="Runs").wait_for()
    page.locator(".badge-running, .badge-finished").first.wait_for(timeout=60_000)
    page.reload()  # the cookie is still good
    page.get_by_role("link", name="tiny").wait_for()
    waiting_for(lambda: RunQueue(root).jobs.get(1).state == "finished", job.log_file.read_text)
    page.locator(".badge-finished").wait_for()
    page.get_by_text("loss").wait_for()


def test_a_killed_run_is_shown_as_interrupted_and_resumes(
    studio, page, root, tiny_llama_dir, prompt_jsonl
):
    job = started(root, tiny_llama_dir, prompt_jsonl, steps=100, save_steps=20)
    page.goto(studio.link())
    waiting_for(lambda: list(root.glob("tiny/checkpoint-*/manifest.json")), job.log_file.read_text)
    os.kill(lock_holder(root / "tiny")["pid"], signal.SIGKILL)
    page.locator(".badge-interrupted").wait_for()
    page.get_by_text("The process was killed, by a user or because memory ran out.").wait_for()
    RunQueue(root).add_resume("tiny")
    page.locator(".badge-running").wait_for()
    waiting_for(lambda: RunQueue(root).jobs.get(2).state == "finished", "the resumed run ends")
    page.locator(".badge-finished").wait_for()

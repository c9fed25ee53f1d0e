"""New run: a base that is downloaded from the hub on the way."""

import time

import pytest

from fixtures.fake_hub import serving_hub

TRAINING_S = 240
KINDS = [("fine", "good"), ("dull", "bad"), ("great", "good"), ("poor", "bad")]
FILMS = "".join(f"A {word} film number {n},{kind}\n" for n in range(10) for word, kind in KINDS)


@pytest.fixture
def hub(tiny_llama_dir, tmp_path, monkeypatch):
    """A hub with one model, and an empty cache; yields the paths that it was asked for."""
    with serving_hub("some-org/tiny", tiny_llama_dir) as (address, asked):
        monkeypatch.setenv("HF_ENDPOINT", address)
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
        yield asked


def take(page, name):
    page.get_by_label("Another: hub id or folder").fill(name)
    page.get_by_role("button", name="Take it").click()
    page.get_by_role("heading", name=name).wait_for()
    page.get_by_role("button", name="Next: Data").click()
    page.get_by_text("Choose the training data").wait_for()


def test_a_base_is_downloaded_when_it_is_needed(hub, studio, root, page):
    page.set_default_timeout(120_000)
    (root / "films.csv").write_text("text,label\n" + FILMS)
    studio.admit(page)
    page.goto(f"{studio.url}/new")
    take(page, "some-org/nothing")
    page.get_by_text("films.csv").click()
    page.get_by_role("alert").filter(has_text="some-org/nothing").first.wait_for()
    page.get_by_role("button", name="Back").click()
    take(page, "some-org/tiny")
    page.get_by_text("The first 10 examples").wait_for()  # of the file that was chosen before
    assert not any(path.endswith(".safetensors") for path in hub)  # the tokenizer is enough so far
    page.get_by_role("button", name="Next: Method").click()
    page.get_by_label("training.num_train_epochs").fill("1")
    page.get_by_role("button", name="Next: Plan").click(delay=500)  # as slowly as some press it
    page.get_by_text("It fits: ").wait_for()
    page.get_by_role("button", name="Next: Start").click()
    page.get_by_role("button", name="Start training").click()
    deadline = time.monotonic() + TRAINING_S
    while not list(root.glob("films*/metrics.jsonl")):  # it trains
        assert time.monotonic() < deadline, sorted(root.rglob("log.txt"))[-1].read_text()
        time.sleep(0.2)
    assert any(path.endswith("/model.safetensors") for path in hub)
    page.goto(f"{studio.url}/new")  # which offers it from now on
    page.get_by_text("some-org/tiny · downloaded").wait_for()

"""New run: from a file that is dropped to a trained adapter."""

import time

TRAINING_S = 240
KINDS = [("fine", "good"), ("dull", "bad"), ("great", "good"), ("poor", "bad")]
FILMS = "".join(f"A {word} film, number {n},{kind}\n" for n in range(10) for word, kind in KINDS)


def drop(page, name, text):
    """Drop a file as from another window."""
    carried = page.evaluate_handle(
        """([name, text]) => {
            const carried = new DataTransfer();
            carried.items.add(new File([text], name));
            return carried;
        }""",
        [name, text],
    )
    page.dispatch_event(".walk-drop", "dragover", {"dataTransfer": carried})
    page.dispatch_event(".walk-drop .q-uploader__dnd", "drop", {"dataTransfer": carried})


def fits(page):
    """Return whether nothing of the page lies outside of the window's width and height."""
    return page.evaluate(
        "[document.documentElement.scrollWidth <= innerWidth,"
        " document.documentElement.scrollHeight <= innerHeight]"
    )


def test_a_dropped_csv_becomes_a_finished_run(studio, root, new_page):
    page = new_page(viewport={"width": 1280, "height": 720})
    page.set_default_timeout(120_000)
    page.goto(studio.link())
    page.get_by_role("link", name="New run").first.click()
    page.get_by_text("quickstart · comes along").click()
    page.get_by_text("LlamaForCausalLM").wait_for()
    assert fits(page) == [True, True]
    page.get_by_role("button", name="Next: Data").click()
    page.get_by_text("Choose the training data").wait_for()
    drop(page, "films.txt", "no table")
    page.get_by_role("alert").filter(has_text="with the ending '.txt'").wait_for()
    drop(page, "Films & <more>.csv", "text,label\n" + FILMS.replace("film, number", "film number"))
    page.get_by_text("The first 10 examples as the model will see them").wait_for()
    page.get_by_text("label: good").first.wait_for()
    assert fits(page) == [True, True]
    page.get_by_role("button", name="Next: Method").click()
    page.get_by_label("training.num_train_epochs").fill("1")
    page.get_by_label("lora.r").fill("0")
    page.get_by_text("lora.r: got 0;").first.wait_for()
    page.reload()  # the draft is as it was
    page.get_by_text("lora.r: got 0;").first.wait_for()
    assert page.get_by_label("training.num_train_epochs").input_value() == "1"
    page.get_by_label("lora.r").fill("2")
    assert fits(page) == [True, True]
    page.get_by_role("button", name="Next: Plan").click()
    page.get_by_text("It fits: ").wait_for()
    assert fits(page) == [True, True]
    page.get_by_role("button", name="Next: Start").click()
    page.get_by_text("lorakit train recipes/films-more.yaml").wait_for()
    assert fits(page) == [True, True]
    page.get_by_role("button", name="Start training").click()
    run = root / "films-more"  # the folder is called "runs"
    deadline = time.monotonic() + TRAINING_S
    while not (run / "report.md").exists():
        assert time.monotonic() < deadline, sorted(root.rglob("log.txt"))[-1].read_text()
        time.sleep(0.2)
    assert (run / "adapter" / "adapter_model.safetensors").exists()
    assert "r: 2" in (run / "recipe.yaml").read_text()


def test_each_step_is_an_address_to_which_the_browser_goes_back(studio, page):
    page.goto(studio.link())
    page.get_by_role("link", name="New run").first.click()
    page.get_by_text("quickstart · comes along").click()
    page.get_by_text("LlamaForCausalLM").wait_for()
    page.get_by_role("button", name="Next: Data").click()
    page.wait_for_url("**/new?draft=*&step=data")
    page.get_by_text("Choose the training data").wait_for()
    page.go_back()
    page.wait_for_url("**&step=base")
    page.get_by_text("Choose a base model").wait_for()
    page.go_forward()
    page.get_by_text("Choose the training data").wait_for()
    page.go_back()
    page.get_by_text("Choose a base model").wait_for()
    page.go_back()
    page.get_by_role("heading", name="Runs").wait_for()
    page.go_forward()
    page.get_by_text("LlamaForCausalLM").wait_for()  # the draft is as it was
    page.get_by_role("button", name="Next: Data").click()
    page.wait_for_url("**&step=data")  # the address follows the content
    page.reload()
    page.get_by_text("Choose the training data").wait_for()
    page.goto(page.url.replace("step=data", "step=plan"))  # it needs data first
    page.get_by_text("Choose the training data").wait_for()
    page.wait_for_url("**&step=data")


def test_no_step_is_wider_than_a_phone(studio, root, new_page):
    page = new_page(viewport={"width": 360, "height": 740})
    studio.admit(page)
    page.goto(f"{studio.url}/new")
    (root / "films.csv").write_text("text,label\n" + FILMS.replace("film, number", "film number"))
    page.get_by_text("quickstart · comes along").click()
    for step in ("Data", "Method", "Plan", "Start"):
        assert fits(page)[0], step
        page.get_by_role("button", name=f"Next: {step}").click()
        if step == "Data":
            page.get_by_text("films.csv").click()
            page.get_by_text("The first 10 examples").wait_for(timeout=120_000)
        if step == "Plan":
            page.get_by_text("It fits: ").wait_for(timeout=120_000)
    page.get_by_text("The same from a terminal").wait_for()
    assert fits(page)[0]

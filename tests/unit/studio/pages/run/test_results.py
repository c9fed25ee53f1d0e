import pytest
from nicegui import ui

from lorakit.runs.predictions import Prediction, Predictions
from lorakit.studio.pages.run.results import show_picture, show_predictions, show_report

pytestmark = pytest.mark.anyio


async def drawn(user, show):
    ui.page("/drawn")(show)
    await user.open("/drawn")


async def test_a_report_keeps_its_names_and_tables(user):
    text = "# Title\n\n| a | b |\n|---|--:|\n| num_train_epochs | 2 |\n\n```\nx <y> _z_\n```\n"
    await drawn(user, lambda: show_report(text))
    (html,) = (element.content for element in user.find(ui.html).elements)
    assert "num_train_epochs" in html
    assert "x &lt;y&gt; _z_" in html
    assert "Title" not in html  # the page has its name already
    assert "<table" in html


@pytest.mark.parametrize(
    "hostile",
    [
        "<script>alert(1)</script>",
        "<img src=x onerror=alert(1)>",
        "![x](https://example.com/x.png)",
        "[x](javascript:alert(1))",
        "[x](JaVaScRiPt:alert(1))",
        "<a href='javascript:alert(1)'>x</a>",
        "```html\n</code></pre><script>alert(1)</script>\n```",
    ],
)
async def test_a_report_has_neither_html_nor_pictures_nor_scripts(user, hostile):
    await drawn(user, lambda: show_report(hostile))
    (html,) = (element.content.lower() for element in user.find(ui.html).elements)
    for tag in ("<script", "<img", 'href="javascript', "<a href='javascript"):
        assert tag not in html


async def test_predictions_without_classes_are_a_list(user):
    rows = tuple(Prediction(f"q{n}", f"a{n}", f"b{n}", None, None) for n in range(12))
    await drawn(user, lambda: show_predictions(Predictions(rows)))
    await user.should_see("0 of 12 validation examples are right (0.0%).")
    await user.should_see("There is none.")
    await user.should_not_see("Confusion matrix")
    await user.should_not_see("Base against adapter")
    await user.should_not_see("confiden")


async def test_the_base_stands_beside_the_adapter(user):
    rows = tuple(
        Prediction(f"q{n}", f"a{n}", f"a{n if n % 2 else 99}", f"a{n if n < 5 else 99}", 0.5)
        for n in range(12)
    )
    await drawn(user, lambda: show_predictions(Predictions(rows)))
    await user.should_see(
        "6 of 12 validation examples are right (50.0%), of the base alone 5 (41.7%)."
    )
    await user.should_see("Wrong, the most confident first (6)")
    await user.should_see("Base against adapter")


async def test_a_picture_that_is_not_there_or_a_link_is_not_shown(user, tmp_path):
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "link.png").symlink_to(tmp_path / "secret")

    def show():
        show_picture(tmp_path / "missing.png", "x")
        show_picture(tmp_path / "link.png", "x")
        ui.label("shown")

    await drawn(user, show)
    await user.should_see("shown")
    assert "secret" not in str([e.props for e in user.find(ui.element).elements if e.tag == "img"])


async def test_numbers_are_shown_by_how_far_they_are_off(user):
    found = Predictions(
        tuple(
            Prediction(f"text {n}", "1.0", f"{1 + n}", None, None, off_by=float(n))
            for n in range(3)
        )
    )
    await drawn(user, lambda: show_predictions(found))
    await user.should_see("3 validation examples, on average 1 off.")
    await user.should_see("The farthest off")
    await user.should_not_see("Confusion matrix")


async def test_a_report_of_any_length_is_cut(user):
    await drawn(user, lambda: show_report("| a | b |\n|---|--:|\n" + "| x | 2 |\n" * 20_000))
    (html,) = (element.content for element in user.find(ui.html).elements)
    assert html.count("<tr>") < 11_000
    await user.should_see("the rest is in report.md")

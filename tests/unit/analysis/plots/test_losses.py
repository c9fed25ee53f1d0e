"""What loss.png shows, read back from the figure."""

import pytest

from fixtures.runs import drawing_losses
from lorakit.adapters.inference_settings import InferenceSettings
from lorakit.analysis.plots import losses as loss_plot
from lorakit.analysis.plots.losses import main_metric, plot_losses
from lorakit.analysis.plots.png import save_png
from lorakit.training import RunDirectory

STEPS = [
    {"event": "step", "step": step, "loss": 2.0 / step, "learning_rate": 0.01 * (4 - step)}
    for step in (1, 2, 3)
]


@pytest.fixture
def panels(monkeypatch, tmp_path):
    """Returns a function that draws rows of metrics and gives the panels from top to bottom."""
    figures = []
    monkeypatch.setattr(loss_plot, "save_png", lambda figure, path, dpi: figures.append(figure))

    def draw(rows, *settings):
        run = RunDirectory(tmp_path)
        for row in rows:
            run.append_metrics(row)
        plot_losses(run, *settings)
        return figures[-1].axes

    return draw


def evaluation(step, **metrics):
    values = {f"eval_{name}": value for name, value in metrics.items()}
    return {"event": "evaluation", "step": step, **values}


def points(line):
    return line.get_xydata().tolist()


def test_metric_and_learning_rate_have_panels_that_share_the_steps(panels):
    guess = {"event": "guessing", "step": 0, "count": 9, "eval_loss": 0.7, "eval_accuracy": 0.5}
    rows = [guess, *STEPS[:2], evaluation(2, loss=0.9, accuracy=0.6), STEPS[2]]
    rows.append(evaluation(3, loss=0.8, accuracy=0.75))
    loss, accuracy, rate = panels(rows, 3, "eval_accuracy")
    assert points(loss.lines[0]) == [[1, 2], [2, 1], [3, 2 / 3]]
    assert points(loss.lines[1]) == [[2, 0.9], [3, 0.8]]  # the guess was not measured
    assert accuracy.get_ylabel() == "validation\naccuracy"
    assert points(accuracy.lines[0]) == [[2, 0.6], [3, 0.75]]
    assert set(accuracy.lines[1].get_ydata()) == {0.5}
    assert points(rate.lines[0]) == [[1, 0.03], [2, 0.02], [3, 0.01]]
    assert rate.get_xlabel() == "optimizer step" and not loss.get_xlabel()
    assert loss.get_xlim() == accuracy.get_xlim() == rate.get_xlim()
    kept = [axes.lines[-1] for axes in (loss, accuracy, rate)]
    assert {line.get_label() for line in kept} == {"kept: step 3"}


def test_a_run_that_logged_nothing_has_an_empty_picture(panels):
    (loss,) = panels([])
    assert not loss.lines and loss.get_legend() is None


def test_an_average_over_classes_is_called_macro(panels, tmp_path):
    (tmp_path / "adapter").mkdir()
    InferenceSettings(task_type="SEQ_CLS", labels=("red",)).save(tmp_path / "adapter")
    rows = [*STEPS, evaluation(3, f1=0.5, f1_red=0.5, accuracy=0.6)]
    assert panels(rows, None, "f1")[1].get_ylabel() == "validation\nmacro\nf1"


def test_a_run_that_measures_the_loss_alone_has_two_panels(panels):
    loss, rate = panels([*STEPS, evaluation(3, loss=0.5, perplexity=1.6)], None, "eval_loss")
    assert loss.get_ylabel().startswith("loss") and rate.get_ylabel() == "learning\nrate"


@pytest.mark.parametrize(
    ("row", "wanted", "found"),
    [
        ({"eval_loss": 1, "eval_f1": 1, "eval_accuracy": 1}, "f1", "eval_f1"),
        ({"eval_loss": 1, "eval_f1": 1, "eval_accuracy": 1}, "eval_f1", "eval_f1"),
        ({"eval_loss": 1, "eval_accuracy": 1}, "eval_loss", "eval_accuracy"),
        ({"eval_loss": 1, "eval_mean_token_accuracy": 1}, None, "eval_mean_token_accuracy"),
        ({"eval_loss": 1, "eval_rougeL": 1, "eval_mean_token_accuracy": 1}, None, "eval_rougeL"),
        ({"eval_loss": 1, "eval_accuracy": None}, "eval_loss", None),
        ({"loss": 1}, None, None),
    ],
)
def test_the_metric_that_is_plotted(row, wanted, found):
    assert main_metric([row], wanted) == found


def test_a_single_point_and_no_validation_can_be_plotted(tmp_path):
    run = RunDirectory(tmp_path)
    run.append_metrics({"event": "step", "step": 1, "loss": 1.0})
    run.append_metrics({"event": "evaluation", "step": 1, "eval_loss": float("nan")})
    with drawing_losses(save_png):
        plot_losses(run)
    assert run.loss_plot.stat().st_size > 1000
    assert sorted(p.name for p in tmp_path.iterdir()) == ["loss.png", "metrics.jsonl"]

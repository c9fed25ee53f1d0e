import pytest
from matplotlib.image import imread

from lorakit.training import RunDirectory
from lorakit.training.report import plot_losses


@pytest.fixture
def report(done):
    return (done[0].run_dir / "report.md").read_text()


def test_the_report_tells_what_was_trained(report, done, tiny_llama_dir):
    result, _ = done
    assert report.startswith("# done\n\nA LoRA adapter for `")
    assert tiny_llama_dir in report
    assert f"| validation loss | {result.metrics['eval_loss']:.4g} |" in report
    assert "| optimizer steps | 10 of 10 |" in report
    assert "| training | 18 |\n| validation | 6 |" in report
    assert f"| trained | {result.parameter_count.trainable:,} |" in report
    assert str(result.injection) in report
    assert "| training.learning_rate | 0.005 |" in report
    assert "| transformers | " in report
    assert "the best by eval_loss." in report


def test_the_report_tells_how_to_go_on(report, done):
    run = done[0].run_dir
    assert f'lorakit generate {run} "..." --base' in report
    assert f"lorakit merge {run} {run}-merged" in report
    assert f"load_adapter(model, {str(run / 'adapter')!r})" in report


def test_the_plot_is_a_picture(done):
    picture = imread(done[0].run_dir / "loss.png")
    height, width = picture.shape[:2]
    assert (width, height) == (960, 540)
    assert picture.std() > 0.05  # something is drawn


def test_a_single_point_and_no_validation_can_be_drawn(done, tmp_path):
    run = RunDirectory(tmp_path)
    run.append_metrics({"event": "step", "step": 1, "loss": 1.0})
    run.append_metrics({"event": "evaluation", "step": 1, "eval_loss": float("nan")})
    plot_losses(run)
    assert run.loss_plot.stat().st_size > 1000
    assert sorted(p.name for p in tmp_path.iterdir()) == ["loss.png", "metrics.jsonl"]

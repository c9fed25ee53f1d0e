import pytest
from matplotlib.image import imread

from lorakit.analysis.metrics import ClassScores
from lorakit.training.report import PredictionFacts, _prediction_section


@pytest.fixture
def report(done):
    return (done[0].run_dir / "report.md").read_text()


def test_the_report_tells_what_was_trained(report, done, tiny_llama_dir):
    result, _ = done
    assert report.startswith("# done\n\n**Too few examples to tell (6): perplexity -")
    assert "against the base, forgets " in report.split("\n")[2]
    assert "**\n\nA LoRA adapter for `" in report
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
    assert (width, height) == (960, 924)  # with panels for accuracy and learning rate
    assert picture.std() > 0.05  # something is drawn


def test_the_report_scores_each_class_and_names_the_files():
    classes = (ClassScores("a|b", 8_000, 0.5, 0.25, 1 / 3), ClassScores("no", 4_000, 0, 0, 0))
    text = "\n".join(_prediction_section(PredictionFacts(10_000, 12_000, classes)))
    assert "| class | examples | precision | recall | F1 |" in text
    assert "| a\\|b | 8,000 | 0.5 | 0.25 | 0.3333 |\n| no | 4,000 | 0 | 0 | 0 |" in text
    assert "has the predictions for the first 10,000 of 12,000 validation examples." in text
    assert "![Confusion matrix of the validation examples](confusion.png)" in text
    (_, alone) = _prediction_section(PredictionFacts(7, 7, ()))
    assert alone == "`predictions.jsonl` has the predictions for all 7 validation examples."
    assert _prediction_section(None) == ()


def test_a_run_without_predictions_does_not_name_them(report):
    assert "predictions.jsonl" not in report and "confusion.png" not in report

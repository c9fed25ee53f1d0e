from lorakit.analysis.paired_bootstrap import Interval
from lorakit.analysis.verdict import Comparison, Forgetting, Verdict
from lorakit.training.verdict.sections import example_sections, verdict_section
from lorakit.training.verdict.shown_examples import ShownExample, ShownExamples


def test_the_numbers_behind_the_sentence():
    found = Comparison("accuracy", "the base", 0.5, 0.621, Interval(12.1, 9.8, 14.4), 1_000)
    text = "\n".join(verdict_section(Verdict(found, None, ("It is 'a|b'.",)), 1.25))
    assert "|  | the base | adapter | difference | 95% interval | on |" in text
    assert "| accuracy | 0.5 | 0.621 | +12.1 points | +9.8 to +14.4 | 1,000 examples |" in text
    assert "- It is 'a\\|b'." in text and "measured for CAUSAL_LM" in text
    assert "The comparison took 1.2 s (`evaluation.compare_with_base`)." in text


def test_perplexities_have_the_sign_of_the_change():
    found = Comparison("perplexity", "the base", 10.0, 5.0, Interval(50.0, 40.0, 58.0), 100)
    forgotten = Forgetting(20.0, 22.0, Interval(10.0, 8.0, 12.0), 36, 2_000)
    text = "\n".join(verdict_section(Verdict(found, forgotten), None))
    assert "| perplexity | 10 | 5 | -50.0 % | -58.0 to -40.0 | 100 examples |" in text
    expected = "| perplexity of neutral text | 20 | 22 | +10.0 % | +8.0 to +12.0 | 36 passages"
    assert expected in text and "Neutral text comes with lorakit" in text
    assert verdict_section(None, None) == ()


def test_examples_are_short_and_read_as_text():
    wrong = ShownExample("example 3 (line 4)", "<b>a|b\n" * 90, "yes", "no", None, 0.987)
    text = "\n".join(example_sections(ShownExamples((wrong,))))
    assert "### The most confident mistakes" in text
    (row,) = [line for line in text.split("\n") if line.startswith("| example 3 (line 4) |")]
    assert row.endswith(" … | yes | no | 98.7% |") and "\\<b\\>a\\|b" in row
    assert "base" not in text and "Random" not in text
    answer = ShownExample("", "question", "answer", "mine", "", None)
    text = "\n".join(example_sections(ShownExamples(random=(answer,))))
    assert "| input | expected | adapter | base |" in text
    assert "| question | answer | mine |  |" in text
    unlikely = ShownExample("", "question", "answer", None, None, 0.1)
    text = "\n".join(example_sections(ShownExamples((unlikely,), kind="unlikely answers")))
    assert "| input | expected | probability |" in text and "least likely answers" in text
    assert example_sections(ShownExamples()) == ()

"""How a run ended, as the command line shows it."""

import json
from types import SimpleNamespace

from lorakit.cli.views.result import kept_evaluation, show_verdict


def test_the_evaluation_of_the_kept_adapter_is_found(tmp_path):
    rows = [
        {"event": "evaluation", "step": n, "eval_loss": loss} for n, loss in ((1, 0.5), (2, 0.3))
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = SimpleNamespace(run_dir=tmp_path, metrics={"eval_loss": 0.5})
    assert kept_evaluation(result)["step"] == 1  # type: ignore[arg-type]


def test_a_verdict_is_printed_if_there_is_one(capsys):
    show_verdict(SimpleNamespace(verdict=None))  # type: ignore[arg-type]
    assert capsys.readouterr().out == ""
    show_verdict(SimpleNamespace(verdict=SimpleNamespace(sentence="Better.")))  # type: ignore[arg-type]
    assert capsys.readouterr().out == "  Better.\n"

"""What is shown of the trials of a search or a study."""

from rich.console import Console

from fixtures.printed import flat
from fixtures.trials import trial_record
from lorakit.cli.views.trials import TrialsView, select_records, trial_line, values_text
from lorakit.recipes.search_sections import Distribution, SearchConfig

SETTINGS = SearchConfig()


def test_a_terminal_gets_a_table_that_is_kept_up(monkeypatch):
    screen = Console(force_terminal=True, width=120, height=30, record=True)
    monkeypatch.setattr("lorakit.cli.views.trials.console", lambda: screen)
    with TrialsView() as view:
        view._settings, view._epochs = SETTINGS, 4
        records = [trial_record(1, "finished", [0.5, 0.25]), trial_record(2, "running", [0.75])]
        view("trials", {"records": records, "changed": records[1]})
    words = flat(screen.export_text())
    assert "trial status epoch best loss r target_modules learning_rate" in words
    assert "trial-001 finished 2/4 0.25 4 q, v 0.00123" in words
    assert "trial-002 running 1/4 0.75" in words


def test_a_line_for_each_thing_that_happens():
    starts = trial_line(trial_record(), SETTINGS, 4)
    assert starts == "trial-001 starts: r=4, target_modules=q, v, learning_rate=0.00123"
    assert (
        trial_line(trial_record(losses=[0.5, 0.75]), SETTINGS, 4)
        == "trial-001 epoch 2/4: loss 0.75"
    )
    stopped = trial_line(trial_record(status="stopped", losses=[0.5]), SETTINGS, 4)
    assert stopped == "trial-001 epoch 1/4: loss 0.5, stopped"
    assert (
        trial_line(trial_record(status="failed", error="why"), SETTINGS, 4)
        == "trial-001 failed: why"
    )


def test_a_small_screen_shows_the_running_and_the_newest():
    records = [trial_record(n, "finished") for n in range(1, 8)] + [
        trial_record(8),
        trial_record(9, "waiting"),
    ]
    names = [r.name for r in select_records(records, 4)]
    assert names == ["trial-006", "trial-007", "trial-008", "trial-009"]
    assert len(select_records(records, 20)) == 9


def test_distributions_in_words():
    assert values_text(Distribution(log_uniform=(1e-4, 0.1))) == "0.0001 ... 0.1 (log scale)"
    assert values_text(Distribution(same_as="lora.r", times=2)) == "2 times lora.r"
    assert values_text(Distribution(choice=(["q", "v"], "all"))) == "q, v | all"

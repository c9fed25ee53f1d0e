from fixtures.run_folders import write_run
from lorakit.runs.metric_log import MetricLog
from lorakit.runs.run_detail import read_detail
from lorakit.studio.pages.run.progress import progress_text


def text_of(path, state="running"):
    log, detail = MetricLog(path / "metrics.jsonl"), read_detail(path)
    log.read()
    return progress_text(log, detail.share_done(log), detail, state)


def test_how_far_a_run_is(tmp_path):
    assert text_of(write_run(tmp_path / "a", 0)) == "No step is logged yet."
    assert text_of(write_run(tmp_path / "b", 20)) == (
        "Step 20 · epoch 1.00 · 2 s · about 2 s left · validation accuracy 0.95"
    )
    assert text_of(tmp_path / "b", "interrupted") == (
        "Step 20 · epoch 1.00 · 2 s · validation accuracy 0.95"
    )
    assert text_of(tmp_path / "b", "queued").startswith("It waits in the queue")
    assert text_of(write_run(tmp_path / "c", 40, is_finished=True)) == (
        "Step 40 · epoch 2.00 · 4 s · validation accuracy 0.975"
    )

"""The application outside of its pages: the queue goes on after a restart."""

from fixtures.run_folders import made_run
from lorakit.studio import app


def test_what_waits_is_started_where_nobody_else_has(studio, monkeypatch):
    started = []
    monkeypatch.setattr(type(studio.queue), "start_waiting", lambda self: started.append(self.root))
    made_run(studio.root, "first")
    app._start_waiting(studio)
    assert started == []
    studio.queue.jobs.create(["train"], "second", studio.root, {}, {}, created_s=0.0)
    app._start_waiting(studio)
    assert started == [studio.root]

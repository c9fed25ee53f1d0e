"""Processes of a launcher, each with different runs: their shares, GPUs and common end."""

import os

import pytest

from forked import run_together
from lorakit.distributed import own_runs
from lorakit.distributed.processes import init_process_groups, process_count


@pytest.mark.parametrize(
    ("rank", "count", "expected"),
    [("0", "2", ["a", "c"]), ("1", "2", ["b"]), ("3", "4", []), (None, None, ["a", "b", "c"])],
)
def test_each_process_has_every_nth_run(rank, count, expected, monkeypatch):
    for name, value in (("RANK", rank), ("WORLD_SIZE", count)):
        if value is not None:
            monkeypatch.setenv(name, value)
    assert own_runs.own_share(["a", "b", "c"]) == expected


@pytest.mark.parametrize(
    ("visible", "local_rank", "expected"),
    [("4,5", 0, "4"), ("4,5", 1, "5"), ("4,5", 2, "4"), ("", 0, None)],
)
def test_each_process_has_a_gpu_of_its_own(visible, local_rank, expected):
    assert own_runs._gpu(visible, local_rank) == expected


def test_inside_the_block_a_process_is_alone(monkeypatch):
    class Store:
        counts = {}

        def add(self, key, amount):
            self.counts[key] = self.counts.get(key, 1) + amount
            return self.counts[key]

    launched = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "here"}
    launched |= {"CUDA_VISIBLE_DEVICES": "6,7"}
    for name, value in launched.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(own_runs, "_store", Store)
    with own_runs.beside_others():
        assert os.environ["CUDA_VISIBLE_DEVICES"] == "7"
        assert not any(name in os.environ for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
        init_process_groups(use_cpu=True)
        assert process_count() == 1
    assert {name: os.environ[name] for name in launched} == launched
    assert Store.counts == {"lorakit/ended": 2, "lorakit/left": 2}


ENDS = """
import os, sys, time
from pathlib import Path
from lorakit.distributed.own_runs import beside_others

rank = os.environ["RANK"]
with beside_others():
    if rank == "0":
        raise SystemExit(3)  # at once; a launcher would end the other
    time.sleep(1)
    Path(sys.argv[1]).write_text("done")
"""


def test_a_process_that_fails_waits_for_the_others(tmp_path):
    ended = run_together(ENDS, tmp_path / "other")
    assert [one.returncode for one in ended] == [3, 0], [one.stderr for one in ended]
    assert (tmp_path / "other").read_text() == "done"

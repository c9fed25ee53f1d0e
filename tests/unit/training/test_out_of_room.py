"""A full disk and exhausted memory end a run with what to do next."""

import errno

import pytest

from lorakit.errors import DiskError, TrainingError
from lorakit.training.out_of_room import explaining_disk_errors, explaining_memory_errors


def test_memory_that_ran_out_names_the_batch_size():
    error = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 8 bytes\nmore")
    with (
        pytest.raises(TrainingError, match=r"per_device_train_batch_size=8\. Halve it.*8 bytes\)$"),
        explaining_memory_errors(8),
    ):
        raise error
    with pytest.raises(RuntimeError, match=r"^shape$"), explaining_memory_errors(8):
        raise RuntimeError("shape")


def test_a_full_disk_says_whether_the_run_has_started(tmp_path):
    def full():
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "file"))

    with (
        pytest.raises(DiskError, match="The run has not started"),
        explaining_disk_errors(tmp_path),
    ):
        full()
    (tmp_path / "recipe.yaml").write_text("")
    with (
        pytest.raises(DiskError, match="with --resume the run starts over"),
        explaining_disk_errors(tmp_path),
    ):
        full()
    with pytest.raises(ValueError, match="other"), explaining_disk_errors(tmp_path):
        raise ValueError("other")
